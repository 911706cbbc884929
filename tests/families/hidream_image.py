"""HiDream-I1."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, HiDreamImagePipeline, HiDreamImageTransformer2DModel

from families.case import FamilyCase, normals
from tiny import redraw

LAYERS = 3  # of Llama that are handed over


def build(area: int, **changes: Any) -> Any:
    """``area``: tokens of the pictures; the pipeline scales all sizes to one area."""
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "caption_channels": [24, 20],
        "text_emb_dim": 12,
        "num_routed_experts": 0,
        "axes_dims_rope": (4, 6, 6),
        "max_resolution": (16, 16),
        "llama_layers": [0, 1, 1, 2],
    }
    transformer = HiDreamImageTransformer2DModel(**{**config, **changes}).eval()
    redraw(transformer, 0)
    pipe = HiDreamImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
        text_encoder_4=None,
        tokenizer_4=None,
        transformer=transformer,
    )
    pipe.default_sample_size = 2.001 * math.sqrt(area)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(area: int, batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    normal = normals()
    scale = 1.0005 * math.sqrt(area / (height * width))  # as the pipeline does
    height, width = int(height * scale), int(width * scale)
    arguments: dict[str, Any] = {}
    for prefix in ("", "negative_"):
        arguments[f"{prefix}prompt_embeds_t5"] = normal(batch, 5, 24)
        arguments[f"{prefix}prompt_embeds_llama3"] = normal(LAYERS, batch, 7, 20)
        arguments[f"{prefix}pooled_prompt_embeds"] = normal(batch, 12)
    arguments |= {
        "latents": normal(batch, 4, 2 * height, 2 * width),
        "height": 16 * height,
        "width": 16 * width,
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    return {**arguments, **changes}


def case(name: str, area: int, sizes: Any, changes: dict[str, Any] | None = None, **arguments: Any) -> FamilyCase:
    tolerance = 0.1 if changes else 0.03
    return FamilyCase(
        name,
        functools.partial(build, area, **(changes or {})),
        functools.partial(call, area, **arguments),
        sizes=sizes,
        flops_tolerance=tolerance,
        rounding=5e-6 if changes else 0.0,
    )


CASES = [
    case("hidream", 48, ((1, 6, 8), (2, 8, 6))),
    case("hidream-square", 64, ((1, 8, 8), (2, 8, 8))),
    case("hidream-no-cfg", 48, ((1, 6, 8), (2, 8, 6)), guidance_scale=1.0),
    case("hidream-experts", 48, ((1, 6, 8), (2, 8, 6)), {"num_routed_experts": 4, "num_activated_experts": 2}),
]
