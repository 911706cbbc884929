"""Qwen-Image."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline, QwenImageTransformer2DModel

from families.case import FamilyCase, normals
from tiny import redraw


def build(pipeline: Any = QwenImagePipeline, vae: Any = None, components: Any = None, **changes: Any) -> Any:
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 24,
        "axes_dims_rope": (4, 6, 6),
    }
    transformer = QwenImageTransformer2DModel(**{**config, **changes}).eval()
    redraw(transformer, 0)
    pipe = pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        **(components or {}),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    normal = normals()
    arguments = {
        "prompt_embeds": normal(batch, 8, 24),
        "prompt_embeds_mask": torch.tensor([[1] * 6 + [0] * 2] * batch),
        "negative_prompt_embeds": normal(batch, 8, 24),
        "negative_prompt_embeds_mask": torch.tensor([[1] * 3 + [0] * 5] * batch),
        "latents": normal(batch, height * width, 16),
        "height": 16 * height,
        "width": 16 * width,
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    return {**arguments, **changes}


CASES = [
    FamilyCase("qwen-image", build, call, num_calls=2),
    FamilyCase("qwen-image-no-cfg", build, functools.partial(call, true_cfg_scale=1.0)),
]
