"""LTX-Video."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LTXPipeline, LTXVideoTransformer3DModel

from families.case import FamilyCase, normals
from tiny import redraw

FRAMES = 3


def build() -> Any:
    torch.manual_seed(0)
    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=3,
        caption_channels=24,
    ).eval()
    redraw(transformer, 0)
    pipe = LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    normal = normals()
    mask, negative_mask = torch.ones(batch, 9), torch.ones(batch, 9)
    mask[:, 7:], negative_mask[:, 3:] = 0, 0
    arguments = {
        "prompt_embeds": normal(batch, 9, 24),
        "negative_prompt_embeds": normal(batch, 9, 24),
        "prompt_attention_mask": mask,
        "negative_prompt_attention_mask": negative_mask,
        "latents": normal(batch, FRAMES * height * width, 8),
        "height": 32 * height,
        "width": 32 * width,
        "num_frames": 8 * (FRAMES - 1) + 1,
        "num_inference_steps": 8,
        "output_type": "latent",
    }
    return {**arguments, **changes}


CASES = [
    FamilyCase("ltx", build, call),
    FamilyCase("ltx-no-cfg", build, lambda **size: call(**size, guidance_scale=1.0)),
    FamilyCase("ltx-rescaled", build, lambda **size: call(**size, guidance_rescale=0.7)),
]
