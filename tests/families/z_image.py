"""Z-Image."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    ZImageControlNetModel,
    ZImageControlNetPipeline,
    ZImageImg2ImgPipeline,
    ZImageInpaintPipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)

from families.case import FamilyCase, normals
from tiny import redraw, tiny_vae


def build(pipeline: Any = ZImagePipeline, vae: Any = None, components: Any = None, **changes: Any) -> Any:
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "in_channels": 4,
        "dim": 48,
        "n_layers": 3,
        "n_refiner_layers": 1,
        "n_heads": 4,
        "n_kv_heads": 4,
        "cap_feat_dim": 24,
        "axes_dims": [4, 4, 4],
        "axes_lens": [96, 32, 32],
    }
    transformer = ZImageTransformer2DModel(**{**config, **changes}).eval()
    redraw(transformer, 0)
    pipe = pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        **(components or {}),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    normal = normals()
    arguments = {
        "prompt_embeds": [normal(8, 24), normal(5, 24)][:batch],
        "negative_prompt_embeds": [normal(3, 24), normal(4, 24)][:batch],
        "latents": normal(batch, 4, 2 * height, 2 * width),
        "height": 16 * height,
        "width": 16 * width,
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    return {**arguments, **changes}


def from_image(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    """Two pixels per latent pixel (tiny_vae), so four per token."""
    image = normals(5)(batch, 3, 4 * height, 4 * width).sigmoid()
    size = {"height": 4 * height, "width": 4 * width, "latents": None, "num_inference_steps": 12}
    generator = torch.Generator().manual_seed(3)
    return {**call(batch, height, width), **size, "image": image, "strength": 0.75, "generator": generator, **changes}


def with_mask(batch: int = 1, height: int = 4, width: int = 6) -> dict[str, Any]:
    mask = torch.zeros(batch, 1, 4 * height, 4 * width)
    mask[..., 4:, 4:] = 1
    return from_image(batch, height, width, mask_image=mask, strength=1.0)


def with_controlnet() -> Any:
    torch.manual_seed(1)
    controlnet = ZImageControlNetModel(
        control_layers_places=[0, 2],
        control_refiner_layers_places=[0],
        control_in_dim=4,
        dim=48,
        n_refiner_layers=1,
        n_heads=4,
        n_kv_heads=4,
    ).eval()
    redraw(controlnet, 1)
    return build(ZImageControlNetPipeline, tiny_vae(4), {"controlnet": controlnet})


def with_control(batch: int = 1, height: int = 4, width: int = 6) -> dict[str, Any]:
    image = normals(5)(batch, 3, 4 * height, 4 * width).sigmoid()
    return call(batch, height, width) | {"control_image": image, "height": 4 * height, "width": 4 * width}


CASES = [
    FamilyCase("z-image", build, call, flops_tolerance=0.05),
    FamilyCase("z-image-no-cfg", build, functools.partial(call, guidance_scale=0.0), flops_tolerance=0.05),
    FamilyCase("z-image-img2img", lambda: build(ZImageImg2ImgPipeline, tiny_vae(4)), from_image, flops_tolerance=0.05),
    FamilyCase("z-image-inpaint", lambda: build(ZImageInpaintPipeline, tiny_vae(4)), with_mask, flops_tolerance=0.05),
    FamilyCase("z-image-controlnet", with_controlnet, with_control, flops_tolerance=0.05),
]
