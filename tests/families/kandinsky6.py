"""Kandinsky 6."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Kandinsky6TI2VAPipeline, Kandinsky6Transformer3DModel

from families.case import FamilyCase, normals
from tiny import redraw

FRAMES = 3


class Sound:
    """In place of the models that are asked for, but not used without decoding."""


def build() -> Any:
    torch.manual_seed(0)
    transformer = Kandinsky6Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=24,
        in_text_dim2=20,
        time_dim=16,
        model_dim=32,
        ff_dim=64,
        num_text_blocks=1,
        num_visual_blocks=3,
        axes_dims=(4, 6, 6),
        in_audio_dim=4,
        out_audio_dim=4,
        ca_rope=True,
        cross_gates=True,
        fix_modulation=True,
        visual_token_type_num_embeddings=2,
    ).eval()
    redraw(transformer, 0)
    pipe = Kandinsky6TI2VAPipeline(
        transformer=transformer,
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
    )
    pipe.audio_vae = pipe.vocoder = Sound()
    pipe.encode_image = encoded
    pipe.set_progress_bar_config(disable=True)
    return pipe


def encoded(image: torch.Tensor, height: int, width: int, device: torch.device, *args: Any) -> torch.Tensor:
    """Stands in for the VAE's encoder: [B, 3, H, W] to latents [B, H / 8, W / 8, 4]."""
    small = torch.nn.functional.avg_pool2d(image, 8)
    return torch.cat([small, small[:, :1]], dim=1).permute(0, 2, 3, 1).to(device)


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    normal = normals()
    arguments = {
        "prompt_embeds": normal(batch, 9, 24),
        "pooled_prompt_embeds": normal(batch, 20),
        "negative_prompt_embeds": normal(batch, 9, 24),
        "negative_pooled_prompt_embeds": normal(batch, 20),
        "latents": normal(batch, 4, FRAMES, 2 * height, 2 * width),
        "audio_latents": normal(batch, 4, 7),
        "height": 16 * height,
        "width": 16 * width,
        "num_frames": 4 * (FRAMES - 1) + 1,
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    return {**arguments, **changes}


def call_image(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    return call(batch, height, width, image=normals(2)(batch, 3, 16 * height, 16 * width), **changes)


CASES = [
    FamilyCase("kandinsky6", build, call, num_calls=2, flops_tolerance=0.1),
    FamilyCase(
        "kandinsky6-silent",
        build,
        functools.partial(call, sample_audio=False, guidance_scale=1.0),
        flops_tolerance=0.25,
    ),
    FamilyCase("kandinsky6-i2v", build, call_image, num_calls=2, flops_tolerance=0.1),
]
