"""Ovis-Image."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, OvisImagePipeline, OvisImageTransformer2DModel

from families.case import FamilyCase, normals
from tiny import redraw


def build() -> Any:
    torch.manual_seed(0)
    transformer = OvisImageTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 6, 6),
        out_channels=16,
    ).eval()
    redraw(transformer, 0)
    pipe = OvisImagePipeline(
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    normal = normals()
    arguments = {
        "prompt_embeds": normal(batch, 8, 24),
        "negative_prompt_embeds": normal(batch, 8, 24),
        "latents": normal(batch, height * width, 16),
        "height": 16 * height,
        "width": 16 * width,
        "num_inference_steps": 6,
        "output_type": "latent",
        "negative_prompt": None,
    }
    return {**arguments, **changes}


CASES = [
    FamilyCase("ovis-image", build, call, num_calls=2),
    FamilyCase("ovis-image-no-cfg", build, functools.partial(call, guidance_scale=1.0)),
]
