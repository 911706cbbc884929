"""FLUX.2."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from PIL import Image

from families.case import FamilyCase, normals
from tiny import redraw


def build(pipeline: Any = Flux2Pipeline, vae: Any = None, **changes: Any) -> Any:
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "patch_size": 1,
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 24,
        "timestep_guidance_channels": 16,
        "axes_dims_rope": (4, 4, 4, 4),
    }
    transformer = Flux2Transformer2DModel(**{**config, **changes}).eval()
    redraw(transformer, 0)
    pipe = pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    normal = normals()
    arguments = {
        "prompt_embeds": normal(batch, 8, 24),
        "latents": normal(batch, 16, height, width),
        "height": 16 * height,
        "width": 16 * width,
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    return {**arguments, **changes}


def tiny_vae() -> Any:
    torch.manual_seed(3)
    return AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(4, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=32,
    ).eval()


def with_references(batch: int = 1, height: int = 4, width: int = 6) -> dict[str, Any]:
    """Two references of 16 x 16 tokens (the smallest that the pipeline takes), behind the picture's tokens."""
    pixels = normals(5)(2, 64, 64, 3).sigmoid().mul(255).byte().numpy()
    references = [Image.fromarray(image) for image in pixels]
    return {**call(batch, height, width), "height": 4 * height, "width": 4 * width, "image": references}


def klein() -> Any:
    return build(pipeline=Flux2KleinPipeline, vae=tiny_vae(), guidance_embeds=False)


def with_negative(batch: int = 1, height: int = 4, width: int = 6) -> dict[str, Any]:
    size = {"height": 4 * height, "width": 4 * width}
    return {**call(batch, height, width), **size, "negative_prompt_embeds": normals(2)(batch, 8, 24)}


def with_references_alone(**size: int) -> dict[str, Any]:
    return {**with_references(**size), "guidance_scale": 1.0}


CASES = [
    FamilyCase("flux2", build, call),
    FamilyCase("flux2-no-guidance", functools.partial(build, guidance_embeds=False), call),
    FamilyCase("flux2-references", lambda: build(vae=tiny_vae()), with_references),
    FamilyCase("flux2-klein", klein, with_negative, num_calls=2),
    FamilyCase("flux2-klein-references", klein, with_references_alone),
]
