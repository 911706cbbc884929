"""Wan 2.2 Animate."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UniPCMultistepScheduler, WanAnimatePipeline, WanAnimateTransformer3DModel
from PIL import Image

from families import wan
from families.case import FamilyCase, normals
from tiny import redraw

FACE = 16  # pixels per side
NUM_FRAMES = 9


def build() -> Any:
    torch.manual_seed(0)
    changes: dict[str, Any] = {
        "in_channels": 12,
        "latent_channels": 4,
        "num_layers": 4,
        "image_dim": 20,
        "added_kv_proj_dim": 32,
        "motion_encoder_channel_sizes": {"4": 4, "8": 4, "16": 4},
        "motion_encoder_size": FACE,
        "motion_style_dim": 8,
        "motion_dim": 4,
        "motion_encoder_dim": 8,
        "face_encoder_hidden_dim": 8,
        "face_encoder_num_heads": 2,
        "inject_face_latents_blocks": 2,
    }
    transformer = WanAnimateTransformer3DModel(**{**wan.TINY, **changes}).eval()
    redraw(transformer, 0)
    pipe = WanAnimatePipeline(
        tokenizer=None,
        text_encoder=None,
        transformer=transformer,
        vae=wan.tiny_vae(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0),
        **wan.tiny_image_encoder(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def frames(normal: Any, height: int, width: int) -> list[Image.Image]:
    return [Image.fromarray(page.numpy()) for page in (255 * normal(NUM_FRAMES, height, width, 3).sigmoid()).byte()]


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    normal = normals(2)
    arguments = wan.call_image(batch, height, width)
    arguments.pop("num_frames")
    pose = frames(normal, 16 * height, 16 * width)
    arguments |= {
        "image": pose[0],
        "pose_video": pose,
        "face_video": frames(normal, FACE, FACE),
        "segment_frame_length": NUM_FRAMES,
        "latents": normal(batch, 4, (NUM_FRAMES - 1) // 4 + 2, 2 * height, 2 * width),
    }
    return {**arguments, **changes}


CASES = [
    FamilyCase("wan-animate", build, call, flops_tolerance=0.1),
    FamilyCase(
        "wan-animate-cfg", build, lambda **size: call(**size, guidance_scale=3.0), num_calls=2, flops_tolerance=0.1
    ),
]
