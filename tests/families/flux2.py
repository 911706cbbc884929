"""FLUX.2."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2Pipeline, Flux2Transformer2DModel

from families.case import FamilyCase, normals
from tiny import redraw


def build(**changes: Any) -> Any:
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "patch_size": 1,
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 24,
        "timestep_guidance_channels": 16,
        "axes_dims_rope": (4, 4, 4, 4),
    }
    transformer = Flux2Transformer2DModel(**{**config, **changes}).eval()
    redraw(transformer, 0)
    pipe = Flux2Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
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
        "latents": normal(batch, 16, height, width),
        "height": 16 * height,
        "width": 16 * width,
        "num_inference_steps": 8,
        "output_type": "latent",
    }
    return {**arguments, **changes}


CASES = [
    FamilyCase("flux2", build, call),
    FamilyCase("flux2-no-guidance", functools.partial(build, guidance_embeds=False), call),
]
