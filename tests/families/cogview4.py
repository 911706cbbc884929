"""CogView4."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    CogView4ControlPipeline,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    FlowMatchEulerDiscreteScheduler,
)

from families.case import FamilyCase, normals
from tiny import redraw, tiny_vae


def build(pipeline: Any = CogView4Pipeline, in_channels: int = 4, vae: Any = None) -> Any:
    torch.manual_seed(0)
    transformer = CogView4Transformer2DModel(
        in_channels=in_channels,
        out_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=24,
        time_embed_dim=16,
        condition_dim=8,
        pos_embed_max_size=16,
        sample_size=16,
        rope_axes_dim=(16, 16),
    ).eval()
    redraw(transformer, 0)
    pipe = pipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(
            base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True, time_shift_type="linear"
        ),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    normal = normals()
    arguments = {
        "prompt_embeds": normal(batch, 9, 24),
        "negative_prompt_embeds": normal(batch, 9, 24),
        "latents": normal(batch, 4, 2 * height, 2 * width),
        "height": 16 * height,
        "width": 16 * width,
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    return {**arguments, **changes}


def with_control(batch: int = 1, height: int = 4, width: int = 6) -> dict[str, Any]:
    return call(batch, height, width, control_image=normals(5)(batch, 3, 16 * height, 16 * width).sigmoid())


CASES = [
    FamilyCase("cogview4", build, call, num_calls=2),
    FamilyCase("cogview4-no-cfg", build, lambda **size: call(**size, guidance_scale=1.0)),
    FamilyCase(
        "cogview4-control",
        lambda: build(CogView4ControlPipeline, 8, tiny_vae(4, num_levels=4)),
        with_control,
        num_calls=2,
    ),
]
