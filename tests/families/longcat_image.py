"""LongCat-Image."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LongCatImagePipeline, LongCatImageTransformer2DModel

from families.case import FamilyCase, normals
from tiny import redraw


class EmbeddingPipeline(LongCatImagePipeline):
    """Embeds prompts without a text encoder: the pipeline needs prompts, it cannot be called with embeddings alone."""

    def _encode_prompt(self, prompt: list[str]) -> torch.Tensor:
        return normals(len(prompt[0]))(len(prompt), 8, 24)


def build() -> Any:
    torch.manual_seed(0)
    transformer = LongCatImageTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 6, 6),
        pooled_projection_dim=24,
    ).eval()
    redraw(transformer, 0)
    pipe = EmbeddingPipeline(
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_processor=None,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    normal = normals()
    arguments = {
        "prompt": ["a fox"] * batch,
        "negative_prompt": [""] * batch,
        "latents": normal(batch, height * width, 16),
        "height": 16 * height,
        "width": 16 * width,
        "num_inference_steps": 6,
        "output_type": "latent",
        "enable_prompt_rewrite": False,
    }
    return {**arguments, **changes}


CASES = [
    FamilyCase("longcat-image", build, call, num_calls=2),
    FamilyCase("longcat-image-no-cfg", build, functools.partial(call, guidance_scale=1.0)),
]
