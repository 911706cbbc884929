"""Helios."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import HeliosPipeline, HeliosScheduler, HeliosTransformer3DModel

from families.case import FamilyCase, normals
from families.wan import tiny_vae
from tiny import redraw

CHUNK = 3


def build(**changes: Any) -> Any:
    torch.manual_seed(0)
    transformer = HeliosTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        text_dim=24,
        freq_dim=16,
        ffn_dim=64,
        num_layers=3,
        rope_dim=(4, 6, 6),
        **changes,
    ).eval()
    redraw(transformer, 0)
    pipe = HeliosPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=tiny_vae(),
        scheduler=HeliosScheduler(stages=1, stage_range=[0, 1], scheduler_type="euler"),
        transformer=transformer,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    """One chunk; the pipeline draws its latents itself."""
    normal = normals()
    arguments = {
        "prompt_embeds": normal(batch, 9, 24),
        "negative_prompt_embeds": normal(batch, 9, 24),
        "height": 16 * height,
        "width": 16 * width,
        "num_frames": 4 * (CHUNK - 1) + 1,
        "num_latent_frames_per_chunk": CHUNK,
        "history_sizes": [4, 2, 1],
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    return {**arguments, **changes}


CASES = [
    FamilyCase("helios", build, call, num_calls=2, flops_tolerance=0.15),
    FamilyCase("helios-no-cfg", build, functools.partial(call, guidance_scale=1.0), flops_tolerance=0.15),
    FamilyCase(
        "helios-amplified", functools.partial(build, is_amplify_history=True), call, num_calls=2, flops_tolerance=0.15
    ),
]
