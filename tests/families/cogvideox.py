"""CogVideoX and CogVideoX 1.5."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel

from families.case import FamilyCase, normals
from tiny import redraw


def build(**changes: Any) -> Any:
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 8,
        "text_embed_dim": 24,
        "num_layers": 3,
        "sample_width": 12,
        "sample_height": 8,
        "sample_frames": 9,
        "max_text_seq_length": 9,
        "use_rotary_positional_embeddings": True,
    }
    transformer = CogVideoXTransformer3DModel(**{**config, **changes}).eval()
    redraw(transformer, 0)
    scheduler = CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    pipe = CogVideoXPipeline(tokenizer=None, text_encoder=None, vae=None, transformer=transformer, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, frames: int = 3, **changes: Any) -> dict[str, Any]:
    normal = normals()
    arguments = {
        "prompt_embeds": normal(batch, 9, 24),
        "negative_prompt_embeds": normal(batch, 9, 24),
        "latents": normal(batch, frames, 4, 2 * height, 2 * width),
        "height": 16 * height,
        "width": 16 * width,
        "num_frames": 4 * (frames - 1) + 1,
        "num_inference_steps": 8,
        "output_type": "latent",
    }
    return {**arguments, **changes}


CASES = [
    FamilyCase("cogvideox", build, call),
    FamilyCase("cogvideox-dynamic-cfg", build, lambda **size: call(**size, use_dynamic_cfg=True)),
    FamilyCase(
        "cogvideox1.5",
        functools.partial(build, patch_size_t=2, patch_bias=False, sample_height=16, sample_width=16),
        lambda **size: call(**size, frames=4, guidance_scale=1.0),
    ),
]
