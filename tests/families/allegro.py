"""Allegro."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AllegroPipeline, AllegroTransformer3DModel, EulerDiscreteScheduler

from families.case import FamilyCase, normals
from tiny import redraw

FRAMES = 3


def build() -> Any:
    torch.manual_seed(0)
    transformer = AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        num_layers=3,
        cross_attention_dim=48,
        caption_channels=24,
        sample_height=12,
        sample_width=12,
        sample_frames=3,
    ).eval()
    redraw(transformer, 0)
    pipe = AllegroPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        transformer=transformer,
        scheduler=EulerDiscreteScheduler(prediction_type="v_prediction"),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    normal = normals()
    mask, negative_mask = torch.ones(batch, 9), torch.ones(batch, 9)
    mask[:, 7:], negative_mask[:, 3:] = 0, 0
    arguments = {
        "prompt": None,
        "negative_prompt": None,
        "prompt_embeds": normal(batch, 9, 24),
        "negative_prompt_embeds": normal(batch, 9, 24),
        "prompt_attention_mask": mask,
        "negative_prompt_attention_mask": negative_mask,
        "latents": normal(batch, 4, FRAMES, 2 * height, 2 * width),
        "height": 16 * height,
        "width": 16 * width,
        "num_frames": 4 * FRAMES,
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    return {**arguments, **changes}


CASES = [
    FamilyCase("allegro", build, call),
    FamilyCase("allegro-no-cfg", build, lambda **size: call(**size, guidance_scale=1.0)),
]
