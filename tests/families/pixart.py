"""PixArt alpha and sigma."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtSigmaPipeline, PixArtTransformer2DModel

from families.case import FamilyCase, normals
from tiny import redraw


def build(pipeline: Any = PixArtAlphaPipeline) -> Any:
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=3,
        cross_attention_dim=32,
        sample_size=16,
        caption_channels=24,
    ).eval()
    redraw(transformer, 0)
    pipe = pipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    normal = normals()
    mask, negative_mask = torch.ones(batch, 9), torch.ones(batch, 9)
    mask[:, 7:], negative_mask[:, 3:] = 0, 0
    arguments = {
        "negative_prompt": None,
        "prompt_embeds": normal(batch, 9, 24),
        "negative_prompt_embeds": normal(batch, 9, 24),
        "prompt_attention_mask": mask,
        "negative_prompt_attention_mask": negative_mask,
        "latents": normal(batch, 4, 2 * height, 2 * width),
        "height": 16 * height,
        "width": 16 * width,
        "use_resolution_binning": False,
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    return {**arguments, **changes}


CASES = [
    FamilyCase("pixart-alpha", build, call),
    FamilyCase("pixart-sigma", functools.partial(build, PixArtSigmaPipeline), call),
    FamilyCase("pixart-no-cfg", build, lambda **size: call(**size, guidance_scale=1.0)),
]
