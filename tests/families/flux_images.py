"""FLUX.1 pipelines that take pictures: image to image, inpainting, filling, references, control."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import (
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxControlPipeline,
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxKontextPipeline,
)

from families import flux
from families.case import FamilyCase, normals
from tiny import redraw, tiny_vae

PIXELS = 4  # per token side: two latent pixels, each of two pixels


def build(pipeline: Any, **changes: Any) -> Any:
    return flux.build(pipeline, vae=tiny_vae(latent_channels=4), **changes)


def with_controlnet() -> Any:
    torch.manual_seed(1)
    controlnet = FluxControlNetModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=20,
        axes_dims_rope=(4, 6, 6),
        guidance_embeds=True,
    ).eval()
    redraw(controlnet, 1)
    return build(FluxControlNetPipeline, components={"controlnet": controlnet})


def picture(batch: int, height: int, width: int, channels: int = 3) -> torch.Tensor:
    return normals(5)(batch, channels, PIXELS * height, PIXELS * width).sigmoid()


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    """Without pictures yet; the pipeline draws its own noise."""
    normal = normals()
    arguments = {
        "prompt_embeds": normal(batch, 8, 24),
        "pooled_prompt_embeds": normal(batch, 20),
        "height": PIXELS * height,
        "width": PIXELS * width,
        "num_inference_steps": 6,
        "generator": torch.Generator().manual_seed(3),
        "output_type": "latent",
    }
    return {**arguments, **changes}


def from_image(batch: int = 1, height: int = 4, width: int = 6) -> dict[str, Any]:
    image = picture(batch, height, width)
    return call(batch, height, width, image=image, strength=0.75, num_inference_steps=12)


def with_mask(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    mask = torch.zeros(batch, 1, PIXELS * height, PIXELS * width)
    mask[..., PIXELS:, PIXELS:] = 1
    return call(batch, height, width, image=picture(batch, height, width), mask_image=mask, **changes)


def with_reference(batch: int = 1, height: int = 4, width: int = 6) -> dict[str, Any]:
    reference = picture(1, height + 2, width)
    area = PIXELS * height * PIXELS * width
    return call(batch, height, width, image=reference, max_area=area, _auto_resize=False)


def with_control(batch: int = 1, height: int = 4, width: int = 6) -> dict[str, Any]:
    return call(batch, height, width, control_image=picture(batch, height, width))


CASES = [
    FamilyCase("flux-img2img", functools.partial(build, FluxImg2ImgPipeline), from_image),
    FamilyCase(
        "flux-inpaint", functools.partial(build, FluxInpaintPipeline), functools.partial(with_mask, strength=1.0)
    ),
    FamilyCase("flux-fill", functools.partial(build, FluxFillPipeline, in_channels=48, out_channels=16), with_mask),
    FamilyCase("flux-kontext", functools.partial(build, FluxKontextPipeline), with_reference),
    FamilyCase(
        "flux-control", functools.partial(build, FluxControlPipeline, in_channels=32, out_channels=16), with_control
    ),
    FamilyCase("flux-controlnet", with_controlnet, with_control),
]
