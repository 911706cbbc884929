"""Mochi 1."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, MochiPipeline, MochiTransformer3DModel

from families.case import FamilyCase, normals
from tiny import redraw

FRAMES = 3


def build() -> Any:
    torch.manual_seed(0)
    transformer = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=3,
        pooled_projection_dim=20,
        in_channels=4,
        text_embed_dim=24,
        time_embed_dim=8,
    ).eval()
    redraw(transformer, 0)
    pipe = MochiPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    normal = normals()
    mask, negative_mask = torch.ones(batch, 9).bool(), torch.ones(batch, 9).bool()
    mask[:, 8:], negative_mask[:, 7:] = False, False
    mask[0, 7:] = False  # the texts of a batch differ in length
    arguments = {
        "prompt_embeds": normal(batch, 9, 24),
        "negative_prompt_embeds": normal(batch, 9, 24),
        "prompt_attention_mask": mask,
        "negative_prompt_attention_mask": negative_mask,
        "latents": normal(batch, 4, FRAMES, 2 * height, 2 * width),
        "height": 16 * height,
        "width": 16 * width,
        "num_frames": 6 * (FRAMES - 1) + 1,
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    return {**arguments, **changes}


CASES = [
    FamilyCase("mochi", build, call),
    FamilyCase("mochi-no-cfg", build, lambda **size: call(**size, guidance_scale=1.0)),
]
