"""Lumina-Image 2.0."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel

from families.case import FamilyCase, normals
from tiny import redraw


def build(**changes: Any) -> Any:
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "sample_size": 16,
        "in_channels": 4,
        "hidden_size": 48,
        "num_layers": 3,
        "num_refiner_layers": 1,
        "num_attention_heads": 4,
        "num_kv_heads": 2,
        "multiple_of": 16,
        "axes_dim_rope": (4, 4, 4),
        "axes_lens": (40, 40, 40),
        "cap_feat_dim": 24,
    }
    transformer = Lumina2Transformer2DModel(**{**config, **changes}).eval()
    redraw(transformer, 0)
    pipe = Lumina2Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=None,
        text_encoder=None,
        tokenizer=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    normal = normals()
    arguments = {
        "prompt_embeds": normal(batch, 8, 24),
        "prompt_attention_mask": (torch.arange(8) < torch.tensor([8, 5])[:batch, None]).long(),
        "negative_prompt_embeds": normal(batch, 8, 24),
        "negative_prompt_attention_mask": (torch.arange(8) < torch.tensor([3, 4])[:batch, None]).long(),
        "latents": normal(batch, 4, 2 * height, 2 * width),
        "height": 16 * height,
        "width": 16 * width,
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    return {**arguments, **changes}


CASES = [
    FamilyCase("lumina2", build, call, num_calls=2, flops_tolerance=0.05),
    FamilyCase("lumina2-no-cfg", build, functools.partial(call, guidance_scale=1.0), flops_tolerance=0.05),
]
