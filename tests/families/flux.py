"""FLUX.1."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

from families.case import FamilyCase, normals
from tiny import redraw


def build(pipeline: Any = FluxPipeline, vae: Any = None, components: Any = None, **changes: Any) -> Any:
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "patch_size": 1,
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 24,
        "pooled_projection_dim": 20,
        "axes_dims_rope": (4, 6, 6),
        "guidance_embeds": True,
    }
    transformer = FluxTransformer2DModel(**{**config, **changes}).eval()
    redraw(transformer, 0)
    pipe = pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        **(components or {}),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    normal = normals()
    arguments = {
        "prompt_embeds": normal(batch, 8, 24),
        "pooled_prompt_embeds": normal(batch, 20),
        "latents": normal(batch, height * width, 16),
        "height": 16 * height,
        "width": 16 * width,
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    return {**arguments, **changes}


def with_true_cfg(batch: int = 1, **size: int) -> dict[str, Any]:
    normal = normals(2)
    negative = {"negative_prompt_embeds": normal(batch, 8, 24), "negative_pooled_prompt_embeds": normal(batch, 20)}
    return call(batch=batch, **size, **negative, true_cfg_scale=3.0)


CASES = [
    FamilyCase("flux", build, call),
    FamilyCase("flux-schnell", functools.partial(build, guidance_embeds=False), call),
    FamilyCase("flux-true-cfg", build, with_true_cfg, num_calls=2),
]
