"""JoyImage Edit Plus."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    JoyImageEditPlusPipeline,
    JoyImageEditPlusTransformer3DModel,
)
from PIL import Image

from families.case import FamilyCase, normals
from families.wan import tiny_vae
from tiny import redraw


class Pipeline(JoyImageEditPlusPipeline):
    """With the language model's part replaced: the pipeline reads its prompt even beside given embeddings."""

    def encode_prompt_multiple_images(
        self, prompt: list[str], *args: Any, device: Any = None, **kwargs: Any
    ) -> tuple[Any, Any]:
        mask = torch.ones(len(prompt), 8, dtype=torch.long)
        mask[:, 6:] = 0
        return normals(len(prompt[0]))(len(prompt), 8, 24).to(device), mask.to(device)


def build() -> Any:
    torch.manual_seed(0)
    transformer = JoyImageEditPlusTransformer3DModel(
        in_channels=4, hidden_size=32, num_attention_heads=2, text_dim=24, num_layers=3, rope_dim_list=[4, 6, 6]
    ).eval()
    redraw(transformer, 0)
    pipe = Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=4.0),
        vae=tiny_vae(),
        text_encoder=None,
        tokenizer=None,
        processor=None,
    )
    pipe.image_processor.get_default_height_width = lambda image, *size: (
        image.size[::-1] if isinstance(image, Image.Image) else tuple(image.shape[-2:])
    )  # its buckets are of a megapixel
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    arguments = {
        "prompt": ["not read"] * batch,
        "latents": normals()(batch, 4, 1, 2 * height, 2 * width),
        "height": 16 * height,
        "width": 16 * width,
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    return {**arguments, **changes}


def call_edit(batch: int = 1, height: int = 4, width: int = 6) -> dict[str, Any]:
    """References of other sizes than the picture, one or two of them: the shorter row is padded."""
    pixels = (255 * normals(2)(48, 32, 3).sigmoid()).byte().numpy()
    images = [[Image.fromarray(pixels)] * (1 + index) for index in range(batch)]
    return call(batch, height, width, images=images)


CASES = [
    FamilyCase("joyimage-edit-plus", build, call_edit),
    FamilyCase("joyimage-edit-plus-no-references", build, call),
    FamilyCase("joyimage-edit-plus-no-cfg", build, functools.partial(call, guidance_scale=1.0)),
]
