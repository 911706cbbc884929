"""Z-Image."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

from families.case import FamilyCase, normals
from tiny import redraw


def build(**changes: Any) -> Any:
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "in_channels": 4,
        "dim": 48,
        "n_layers": 3,
        "n_refiner_layers": 1,
        "n_heads": 4,
        "n_kv_heads": 4,
        "cap_feat_dim": 24,
        "axes_dims": [4, 4, 4],
        "axes_lens": [96, 32, 32],
    }
    transformer = ZImageTransformer2DModel(**{**config, **changes}).eval()
    redraw(transformer, 0)
    pipe = ZImagePipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=None,
        text_encoder=None,
        tokenizer=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    normal = normals()
    arguments = {
        "prompt_embeds": [normal(8, 24), normal(5, 24)][:batch],
        "negative_prompt_embeds": [normal(3, 24), normal(4, 24)][:batch],
        "latents": normal(batch, 4, 2 * height, 2 * width),
        "height": 16 * height,
        "width": 16 * width,
        "num_inference_steps": 8,
        "output_type": "latent",
    }
    return {**arguments, **changes}


CASES = [
    FamilyCase("z-image", build, call, flops_tolerance=0.05),
    FamilyCase("z-image-no-cfg", build, functools.partial(call, guidance_scale=0.0), flops_tolerance=0.05),
]
