"""CogView3-Plus."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import CogVideoXDDIMScheduler, CogView3PlusPipeline, CogView3PlusTransformer2DModel

from families.case import FamilyCase, normals
from tiny import redraw


def build() -> Any:
    torch.manual_seed(0)
    transformer = CogView3PlusTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=24,
        time_embed_dim=16,
        condition_dim=8,
        pos_embed_max_size=32,
        sample_size=16,
    ).eval()
    redraw(transformer, 0)
    pipe = CogView3PlusPipeline(
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        scheduler=CogVideoXDDIMScheduler(prediction_type="v_prediction"),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    normal = normals()
    arguments = {
        "prompt_embeds": normal(batch, 8, 24),
        "negative_prompt_embeds": normal(batch, 8, 24),
        "latents": normal(batch, 4, 2 * height, 2 * width),
        "height": 16 * height,
        "width": 16 * width,
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    return {**arguments, **changes}


CASES = [
    FamilyCase("cogview3-plus", build, call),
    FamilyCase("cogview3-plus-no-cfg", build, functools.partial(call, guidance_scale=1.0)),
]
