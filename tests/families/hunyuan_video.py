"""HunyuanVideo."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoPipeline, HunyuanVideoTransformer3DModel

from families.case import FamilyCase, normals
from tiny import redraw

FRAMES = 3


def build() -> Any:
    torch.manual_seed(0)
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=24,
        pooled_projection_dim=20,
        rope_axes_dim=(4, 6, 6),
    ).eval()
    redraw(transformer, 0)
    pipe = HunyuanVideoPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        vae=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=None,
        tokenizer_2=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    normal = normals()
    mask, negative_mask = torch.ones(batch, 9), torch.ones(batch, 9)
    mask[:, 7:], negative_mask[:, 3:] = 0, 0
    arguments = {
        "prompt_embeds": normal(batch, 9, 24),
        "pooled_prompt_embeds": normal(batch, 20),
        "prompt_attention_mask": mask,
        "negative_prompt_embeds": normal(batch, 9, 24),
        "negative_pooled_prompt_embeds": normal(batch, 20),
        "negative_prompt_attention_mask": negative_mask,
        "latents": normal(batch, 4, FRAMES, 2 * height, 2 * width),
        "height": 16 * height,
        "width": 16 * width,
        "num_frames": 4 * (FRAMES - 1) + 1,
        "num_inference_steps": 8,
        "output_type": "latent",
    }
    return {**arguments, **changes}


CASES = [
    FamilyCase("hunyuan-video", build, call),
    FamilyCase("hunyuan-video-true-cfg", build, lambda **size: call(**size, true_cfg_scale=3.0), num_calls=2),
]
