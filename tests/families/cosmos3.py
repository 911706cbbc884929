"""Cosmos 3."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import Cosmos3OmniPipeline, Cosmos3OmniTransformer, UniPCMultistepScheduler
from PIL import Image

from families.case import FamilyCase, normals
from families.wan import tiny_vae
from tiny import redraw

FRAMES = 3


class Tokenizer:
    """What the pipeline asks of it as it is built."""

    eos_token_id = 1

    def convert_tokens_to_ids(self, token: str) -> int:
        return 2


class Pipeline(Cosmos3OmniPipeline):
    """With the tokenizer's part replaced."""

    def tokenize_prompt(self, *args: Any, **kwargs: Any) -> tuple[list[int], list[int]]:
        return list(range(3, 12)), list(range(3, 9))


def build() -> Any:
    torch.manual_seed(0)
    transformer = Cosmos3OmniTransformer(
        head_dim=16,
        hidden_size=32,
        intermediate_size=64,
        latent_channel=4,
        num_attention_heads=2,
        num_hidden_layers=3,
        num_key_value_heads=1,
        patch_latent_dim=16,
        rope_axes_dim=(4, 2, 2),
        vocab_size=32,
    ).eval()
    redraw(transformer, 0)
    pipe = Pipeline(
        transformer=transformer,
        text_tokenizer=Tokenizer(),
        vae=tiny_vae(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        enable_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, frames: int = FRAMES, **changes: Any) -> dict[str, Any]:
    arguments = {
        "prompt": "not read",
        "latents": normals()(1, 4, frames, 2 * height, 2 * width),
        "height": 16 * height,
        "width": 16 * width,
        "num_frames": 4 * (frames - 1) + 1,
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    return {**arguments, **changes}


def call_image(batch: int = 1, height: int = 4, width: int = 6) -> dict[str, Any]:
    pixels = (255 * normals(2)(16 * height, 16 * width, 3).sigmoid()).byte().numpy()
    return call(batch, height, width, image=Image.fromarray(pixels))


ONE: dict[str, Any] = {"max_batch": 1, "flops_tolerance": 0.03}
CASES = [
    FamilyCase("cosmos3", build, call, num_calls=2, **ONE),
    FamilyCase("cosmos3-no-cfg", build, functools.partial(call, guidance_scale=1.0), **ONE),
    FamilyCase("cosmos3-t2i", build, functools.partial(call, frames=1), num_calls=2, **ONE),
    FamilyCase("cosmos3-i2v", build, call_image, num_calls=2, **{**ONE, "flops_tolerance": 0.1}),
]
