"""SkyReels-V2 without diffusion forcing."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    SkyReelsV2ImageToVideoPipeline,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
)

from families import wan
from families.case import FamilyCase
from tiny import redraw


def build(pipeline: Any = SkyReelsV2Pipeline, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = {**wan.TINY, **changes}
    transformer = SkyReelsV2Transformer3DModel(**config).eval()
    redraw(transformer, 0)
    components = {} if pipeline is SkyReelsV2Pipeline else wan.tiny_image_encoder()
    pipe = pipeline(
        tokenizer=None,
        text_encoder=None,
        transformer=transformer,
        vae=wan.tiny_vae(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        **components,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


CASES = [
    FamilyCase("skyreels-v2", build, wan.call, num_calls=2),
    FamilyCase(
        "skyreels-v2-frame-blocks",
        lambda: build(num_frame_per_block=3),
        lambda **size: wan.call(**size, guidance_scale=1.0),
    ),
    FamilyCase(
        "skyreels-v2-i2v",
        lambda: build(SkyReelsV2ImageToVideoPipeline, in_channels=12, image_dim=20, added_kv_proj_dim=32),
        wan.call_image,
        num_calls=2,
    ),
]
