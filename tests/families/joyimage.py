"""JoyImage Edit."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, JoyImageEditPipeline, JoyImageEditTransformer3DModel
from PIL import Image

from families import wan
from families.case import FamilyCase, normals
from tiny import redraw


def build(**changes: Any) -> Any:
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "in_channels": 4,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "text_dim": 24,
        "mlp_width_ratio": 2.0,
        "num_layers": 3,
        "rope_dim_list": [4, 6, 6],
    }
    transformer = JoyImageEditTransformer3DModel(**{**config, **changes}).eval()
    redraw(transformer, 0)
    pipe = JoyImageEditPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=4.0),
        vae=wan.tiny_vae(),
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        processor=None,
    )
    pipe.vae_image_processor.get_default_height_width = lambda image, height, width: (height, width)  # no buckets
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    normal = normals()
    arguments = {
        "prompt_embeds": normal(batch, 9, 24),
        "prompt_embeds_mask": torch.ones(batch, 9),
        "negative_prompt_embeds": normal(batch, 9, 24),
        "negative_prompt_embeds_mask": torch.ones(batch, 9),
        "latents": normal(batch, 1, 4, 1, 2 * height, 2 * width),
        "height": 16 * height,
        "width": 16 * width,
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    return {**arguments, **changes}


def call_edit(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    page = (255 * normals(2)(16 * height, 16 * width, 3).sigmoid()).byte()
    return call(batch, height, width, image=Image.fromarray(page.numpy()), **changes)


CASES = [
    FamilyCase("joyimage", build, call, num_calls=2),
    FamilyCase("joyimage-edit", build, call_edit, num_calls=2),
    FamilyCase("joyimage-mrope", functools.partial(build, rope_type="mrope"), call_edit, num_calls=2),
]
