"""GLM-Image."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, GlmImagePipeline, GlmImageTransformer2DModel

from families.case import FamilyCase, normals
from tiny import redraw

CODES = 20  # of the language model's picture vocabulary


def build() -> Any:
    torch.manual_seed(0)
    transformer = GlmImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        time_embed_dim=16,
        condition_dim=8,
        text_embed_dim=24,
        prior_vq_quantizer_codebook_size=CODES,
    ).eval()
    redraw(transformer, 0)
    pipe = GlmImagePipeline(
        tokenizer=None,
        processor=None,
        text_encoder=None,
        vision_language_encoder=None,
        vae=None,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    normal = normals()
    arguments = {
        "prompt_embeds": normal(batch, 8, 24),
        "negative_prompt_embeds": normal(batch, 8, 24),
        "prior_token_ids": torch.arange(batch * height * width).view(batch, -1) % CODES,
        "latents": normal(batch, 4, 2 * height, 2 * width),
        "height": 16 * height,
        "width": 16 * width,
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    return {**arguments, **changes}


CASES = [
    FamilyCase("glm-image", build, call, num_calls=2),
    FamilyCase("glm-image-no-cfg", build, functools.partial(call, guidance_scale=1.0)),
]
