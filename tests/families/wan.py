"""Wan 2.1 and 2.2."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

from families.case import FamilyCase, normals
from tiny import redraw

FRAMES = 3


def tiny_transformer(seed: int = 0, **changes: Any) -> WanTransformer3DModel:
    torch.manual_seed(seed)
    config: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 24,
        "freq_dim": 16,
        "ffn_dim": 64,
        "num_layers": 3,
        "rope_max_seq_len": 32,
    }
    transformer = WanTransformer3DModel(**{**config, **changes}).eval()
    redraw(transformer, seed)
    return transformer


def build(**components: Any) -> Any:
    pipe = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        transformer=tiny_transformer(),
        **components,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    normal = normals()
    arguments = {
        "prompt_embeds": normal(batch, 9, 24),
        "negative_prompt_embeds": normal(batch, 9, 24),
        "latents": normal(batch, 4, FRAMES, 2 * height, 2 * width),
        "height": 16 * height,
        "width": 16 * width,
        "num_frames": 4 * (FRAMES - 1) + 1,
        "num_inference_steps": 8,
        "output_type": "latent",
    }
    return {**arguments, **changes}


CASES = [
    FamilyCase("wan", build, call, num_calls=2),
    FamilyCase("wan-no-cfg", build, lambda **size: call(**size, guidance_scale=1.0)),
    FamilyCase(  # the timestep's embedding is worked out for every token then, which the cost model leaves out
        "wan-per-token-timesteps", lambda: build(expand_timesteps=True), call, num_calls=2, flops_tolerance=0.3
    ),
]
