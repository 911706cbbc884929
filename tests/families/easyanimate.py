"""EasyAnimate."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import EasyAnimatePipeline, EasyAnimateTransformer3DModel, FlowMatchEulerDiscreteScheduler

from families.case import FamilyCase, normals
from tiny import redraw

FRAMES = 3


def tiny_vae() -> Any:
    from diffusers import AutoencoderKLMagvit

    torch.manual_seed(3)
    kind = "SpatialTemporalDownBlock3D"
    vae = AutoencoderKLMagvit(
        latent_channels=4,
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("SpatialDownBlock3D", kind, kind, kind),
        up_block_types=("SpatialUpBlock3D", *["SpatialTemporalUpBlock3D"] * 3),
        layers_per_block=1,
        norm_num_groups=2,
    )
    return vae.eval()


def build(**changes: Any) -> Any:
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
        "patch_size": 2,
        "num_layers": 3,
        "mmdit_layers": 2,
        "time_embed_dim": 8,
        "text_embed_dim": 24,
    }
    transformer = EasyAnimateTransformer3DModel(**{**config, **changes}).eval()
    redraw(transformer, 0)
    pipe = EasyAnimatePipeline(
        vae=tiny_vae(),
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    normal = normals()
    arguments = {
        "prompt_embeds": normal(batch, 9, 24),
        "negative_prompt_embeds": normal(batch, 9, 24),
        "prompt_attention_mask": torch.ones(batch, 9),
        "negative_prompt_attention_mask": torch.ones(batch, 9),
        "latents": normal(batch, 4, FRAMES, 2 * height, 2 * width),
        "height": 16 * height,
        "width": 16 * width,
        "num_frames": 4 * (FRAMES - 1) + 1,
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    return {**arguments, **changes}


CASES = [
    FamilyCase("easyanimate", build, call),
    FamilyCase("easyanimate-no-cfg", build, lambda **size: call(**size, guidance_scale=1.0)),
]
