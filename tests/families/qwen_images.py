"""Qwen-Image pipelines that take pictures: image to image, inpainting, ControlNet, edits with references."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    QwenImageControlNetModel,
    QwenImageControlNetPipeline,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageImg2ImgPipeline,
    QwenImageInpaintPipeline,
    QwenImageLayeredPipeline,
)
from diffusers.pipelines.qwenimage import (
    pipeline_qwenimage_edit,
    pipeline_qwenimage_edit_plus,
    pipeline_qwenimage_layered,
)
from PIL import Image

from families import qwen_image
from families.case import FamilyCase, normals
from tiny import redraw

PIXELS = 4  # per token side: two latent pixels, each of two pixels


def tiny_vae() -> Any:
    torch.manual_seed(3)
    return AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).eval()


class SmallEditPipeline(QwenImageEditPipeline):
    """References of six tokens: the pipeline scales them to a megapixel."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        small = lambda area, ratio: (3 * PIXELS, 2 * PIXELS, None)  # noqa: E731
        with mock.patch.object(pipeline_qwenimage_edit, "calculate_dimensions", small):
            return super().__call__(*args, **kwargs)


class SmallEditPlusPipeline(QwenImageEditPlusPipeline):
    """The same, for several references."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        small = lambda area, ratio: (3 * PIXELS, 2 * PIXELS)  # noqa: E731
        with mock.patch.object(pipeline_qwenimage_edit_plus, "calculate_dimensions", small):
            return super().__call__(*args, **kwargs)


class SmallLayeredPipeline(QwenImageLayeredPipeline):
    """Layers and reference of the size that the case asks for: the pipeline scales them to 640 x 640 pixels or more."""

    def __call__(self, *args: Any, size: tuple[int, int], **kwargs: Any) -> Any:
        small = lambda area, ratio: size  # noqa: E731
        with mock.patch.object(pipeline_qwenimage_layered, "calculate_dimensions", small):
            return super().__call__(*args, **kwargs)


def layered() -> Any:
    pipe = build(
        SmallLayeredPipeline,
        components={"processor": None},
        use_layer3d_rope=True,
        use_additional_t_cond=True,
    )
    pipe.text_encoder = SimpleNamespace(dtype=torch.float32)
    return pipe


def layers(batch: int = 1, height: int = 4, width: int = 6) -> dict[str, Any]:
    pixels = picture(1, 2, 3)[0].movedim(0, -1).mul(255).byte().numpy()
    arguments = call(batch, height, width, image=Image.fromarray(pixels), prompt="not read", output_type="pt")
    del arguments["height"], arguments["width"]
    return arguments | {"layers": 2, "size": (PIXELS * width, PIXELS * height)}


def build(pipeline: Any, **changes: Any) -> Any:
    return qwen_image.build(pipeline, vae=tiny_vae(), **changes)


def with_controlnet() -> Any:
    torch.manual_seed(1)
    controlnet = QwenImageControlNetModel(
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 6, 6),
    ).eval()
    redraw(controlnet, 1)
    return build(QwenImageControlNetPipeline, components={"controlnet": controlnet})


def picture(batch: int, height: int, width: int) -> torch.Tensor:
    return normals(5)(batch, 3, PIXELS * height, PIXELS * width).sigmoid()


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    """Without pictures yet; the pipeline draws its own noise."""
    arguments = qwen_image.call(batch, height, width)
    arguments |= {"latents": None, "height": PIXELS * height, "width": PIXELS * width}
    return {**arguments, "generator": torch.Generator().manual_seed(3), **changes}


def from_image(batch: int = 1, height: int = 4, width: int = 6) -> dict[str, Any]:
    image = picture(batch, height, width)
    return call(batch, height, width, image=image, strength=0.75, num_inference_steps=12)


def with_mask(batch: int = 1, height: int = 4, width: int = 6) -> dict[str, Any]:
    mask = torch.zeros(batch, 1, PIXELS * height, PIXELS * width)
    mask[..., PIXELS:, PIXELS:] = 1
    return call(batch, height, width, image=picture(batch, height, width), mask_image=mask, strength=1.0)


def with_control(batch: int = 1, height: int = 4, width: int = 6) -> dict[str, Any]:
    return call(batch, height, width, control_image=picture(batch, height, width))


def with_references(batch: int = 1, height: int = 4, width: int = 6, count: int = 1) -> dict[str, Any]:
    pixels = picture(count, 2, 3).movedim(1, -1).mul(255).byte().numpy()
    references = [Image.fromarray(image) for image in pixels]
    return call(batch, height, width, image=references if count > 1 else references[0])


CASES = [
    FamilyCase("qwen-image-img2img", functools.partial(build, QwenImageImg2ImgPipeline), from_image, num_calls=2),
    FamilyCase("qwen-image-inpaint", functools.partial(build, QwenImageInpaintPipeline), with_mask, num_calls=2),
    FamilyCase("qwen-image-controlnet", with_controlnet, with_control, num_calls=2),
    FamilyCase(
        "qwen-image-edit",
        lambda: build(SmallEditPipeline, components={"processor": None}),
        with_references,
        num_calls=2,
        max_batch=1,
    ),
    FamilyCase(
        "qwen-image-edit-plus",
        lambda: build(SmallEditPlusPipeline, components={"processor": None}),
        functools.partial(with_references, count=2),
        num_calls=2,
        max_batch=1,
    ),
    FamilyCase(
        "qwen-image-edit-plus-2511",
        lambda: build(SmallEditPlusPipeline, components={"processor": None}, zero_cond_t=True),
        functools.partial(with_references, count=2),
        num_calls=2,
        max_batch=1,
    ),
    FamilyCase(
        "qwen-image-layered",
        layered,
        layers,
        num_calls=2,
        output=lambda output: torch.cat(list(output[0])),  # pictures: the pipeline does not return latents
        max_batch=1,
    ),
]
