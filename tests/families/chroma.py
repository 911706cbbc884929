"""Chroma."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import ChromaImg2ImgPipeline, ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler

from families.case import FamilyCase, normals
from tiny import redraw, tiny_vae


def build(pipeline: Any = ChromaPipeline, vae: Any = None, **changes: Any) -> Any:
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "patch_size": 1,
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 24,
        "axes_dims_rope": (4, 6, 6),
        "approximator_num_channels": 16,
        "approximator_hidden_dim": 16,
        "approximator_layers": 1,
    }
    transformer = ChromaTransformer2DModel(**{**config, **changes}).eval()
    redraw(transformer, 0)
    pipe = pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    normal = normals()
    arguments = {
        "prompt_embeds": normal(batch, 8, 24),
        "negative_prompt_embeds": normal(batch, 8, 24),
        "prompt_attention_mask": torch.tensor([[1.0] * 6 + [0.0] * 2] * batch),
        "negative_prompt_attention_mask": torch.tensor([[1.0] * 3 + [0.0] * 5] * batch),
        "latents": normal(batch, height * width, 16),
        "height": 16 * height,
        "width": 16 * width,
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    return {**arguments, **changes}


def from_image(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    """Two pixels per latent pixel (tiny_vae), so four per token."""
    image = normals(5)(batch, 3, 4 * height, 4 * width).sigmoid()
    size = {"height": 4 * height, "width": 4 * width, "latents": None, "num_inference_steps": 12}
    generator = torch.Generator().manual_seed(3)
    return {**call(batch, height, width), **size, "image": image, "strength": 0.75, "generator": generator, **changes}


CASES = [
    FamilyCase("chroma", build, call, num_calls=2),
    FamilyCase("chroma-no-cfg", build, functools.partial(call, guidance_scale=1.0)),
    FamilyCase(
        "chroma-img2img",
        lambda: build(ChromaImg2ImgPipeline, tiny_vae(4)),
        from_image,
        num_calls=2,
    ),
]
