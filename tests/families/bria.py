"""Bria 3.2."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import BriaPipeline, BriaTransformer2DModel, FlowMatchEulerDiscreteScheduler

from families.case import FamilyCase, normals
from tiny import redraw, tiny_vae


def build() -> Any:
    torch.manual_seed(0)
    transformer = BriaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 6, 6),
    ).eval()
    redraw(transformer, 0)
    pipe = BriaPipeline(
        vae=tiny_vae(4),
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
        "height": 4 * height,
        "width": 4 * width,
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    return {**arguments, **changes}


CASES = [
    FamilyCase("bria", build, call),
    FamilyCase("bria-no-cfg", build, functools.partial(call, guidance_scale=1.0)),
]
