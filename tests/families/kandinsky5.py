"""Kandinsky 5."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    Kandinsky5I2IPipeline,
    Kandinsky5I2VPipeline,
    Kandinsky5T2IPipeline,
    Kandinsky5T2VPipeline,
    Kandinsky5Transformer3DModel,
)
from PIL import Image

from families.case import FamilyCase, normals
from tiny import redraw

FRAMES = 3
GIVEN_FRAMES = 5  # the image-to-video pipeline evens out the first four with the ones behind them


def build(pipeline: Any = Kandinsky5T2VPipeline, **changes: Any) -> Any:
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "in_visual_dim": 4,
        "out_visual_dim": 4,
        "in_text_dim": 24,
        "in_text_dim2": 20,
        "time_dim": 16,
        "model_dim": 32,
        "ff_dim": 64,
        "num_text_blocks": 1,
        "num_visual_blocks": 3,
        "axes_dims": (4, 6, 6),
    }
    transformer = Kandinsky5Transformer3DModel(**{**config, **changes}).eval()
    redraw(transformer, 0)
    pipe = pipeline(
        transformer=transformer,
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
    )
    if hasattr(pipe, "resolutions"):  # pictures come in sizes of about a million pixels only
        pipe.resolutions = [(128, 96), (96, 128), (96, 64)]
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(
    batch: int = 1, height: int = 4, width: int = 6, frames: int = FRAMES, channels: int = 4, **changes: Any
) -> dict[str, Any]:
    normal = normals()
    arguments: dict[str, Any] = {}
    for prefix, length in (("", 9), ("negative_", 9)):
        arguments[f"{prefix}prompt_embeds_qwen"] = normal(batch, length, 24)
        arguments[f"{prefix}prompt_embeds_clip"] = normal(batch, 20)
        arguments[f"{prefix}prompt_cu_seqlens"] = length * torch.arange(batch + 1, dtype=torch.int32)
    arguments |= {
        "latents": normal(batch, frames, 2 * height, 2 * width, channels),
        "height": 16 * height,
        "width": 16 * width,
        "num_frames": 4 * (frames - 1) + 1,
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    return {**arguments, **changes}


def call_picture(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    arguments = call(batch, height, width, frames=1, **changes)
    arguments.pop("num_frames")
    return arguments


def given(arguments: dict[str, Any]) -> dict[str, Any]:
    """The latents hold the picture already, the pipeline only wants to see one."""
    return {**arguments, "image": Image.new("RGB", (arguments["width"], arguments["height"]))}


CASES = [
    FamilyCase("kandinsky5", build, call, num_calls=2),
    FamilyCase("kandinsky5-no-cfg", build, functools.partial(call, guidance_scale=1.0)),
    FamilyCase(
        "kandinsky5-i2v",
        functools.partial(build, Kandinsky5I2VPipeline, visual_cond=True),
        lambda **size: given(call(**size, frames=GIVEN_FRAMES, channels=9)),
        num_calls=2,
    ),
    FamilyCase("kandinsky5-t2i", functools.partial(build, Kandinsky5T2IPipeline), call_picture, num_calls=2),
    FamilyCase(
        "kandinsky5-i2i",
        functools.partial(build, Kandinsky5I2IPipeline, visual_cond=True),
        lambda **size: given(call_picture(**size, channels=9)),
        num_calls=2,
    ),
]
