"""Motif-Video."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, MotifVideoPipeline, MotifVideoTransformer3DModel
from diffusers.guiders import ClassifierFreeGuidance

from families import wan
from families.case import FamilyCase, normals
from tiny import redraw

FRAMES = 3


def build(**changes: Any) -> Any:
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "in_channels": 9,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "mlp_ratio": 2.0,
        "text_embed_dim": 24,
        "rope_axes_dim": (4, 6, 6),
        "enable_text_cross_attention_dual": True,
        "enable_text_cross_attention_single": True,
    }
    transformer = MotifVideoTransformer3DModel(**{**config, **changes}).eval()
    redraw(transformer, 0)
    pipe = MotifVideoPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        vae=wan.tiny_vae(),
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        guider=ClassifierFreeGuidance(guidance_scale=4.0),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    normal = normals()
    mask, negative_mask = torch.ones(batch, 9), torch.ones(batch, 9)
    mask[:, 7:], negative_mask[:, 3:] = 0, 0
    arguments = {
        "prompt_embeds": normal(batch, 9, 24),
        "prompt_attention_mask": mask,
        "negative_prompt_embeds": normal(batch, 9, 24),
        "negative_prompt_attention_mask": negative_mask,
        "latents": normal(batch, 4, FRAMES, 2 * height, 2 * width),
        "height": 16 * height,
        "width": 16 * width,
        "num_frames": 4 * (FRAMES - 1) + 1,
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    return {**arguments, **changes}


WITH_DECODER = functools.partial(build, num_decoder_layers=1)
CASES = [
    FamilyCase("motif-video", WITH_DECODER, call, num_calls=2),
    FamilyCase("motif-video-no-decoder", build, call, num_calls=2),
]
