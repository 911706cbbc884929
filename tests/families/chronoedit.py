"""ChronoEdit."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ChronoEditPipeline, ChronoEditTransformer3DModel, UniPCMultistepScheduler

from families import wan
from families.case import FamilyCase, normals
from tiny import redraw


def build() -> Any:
    torch.manual_seed(0)
    config = {**wan.TINY, "in_channels": 12, "image_dim": 20, "added_kv_proj_dim": 32}
    transformer = ChronoEditTransformer3DModel(**config).eval()
    redraw(transformer, 0)
    pipe = ChronoEditPipeline(
        tokenizer=None,
        text_encoder=None,
        transformer=transformer,
        vae=wan.tiny_vae(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0),
        **wan.tiny_image_encoder(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    arguments = wan.call_image(batch, height, width, **changes)
    return {**arguments, "latents": normals(3)(batch, 4, 2, 2 * height, 2 * width)}


CASES = [
    FamilyCase("chronoedit", build, call, num_calls=2),
    FamilyCase("chronoedit-no-cfg", build, lambda **size: call(**size, guidance_scale=1.0)),
]
