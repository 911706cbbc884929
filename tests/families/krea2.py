"""Krea 2."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Krea2Pipeline, Krea2Transformer2DModel

from families.case import FamilyCase, normals
from tiny import redraw

LAYERS = 3  # of the text encoder that are tapped


def build() -> Any:
    torch.manual_seed(0)
    transformer = Krea2Transformer2DModel(
        in_channels=16,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        timestep_embed_dim=16,
        text_hidden_dim=24,
        num_text_layers=LAYERS,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=32,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    ).eval()
    redraw(transformer, 0)
    pipe = Krea2Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=None,
        text_encoder=None,
        tokenizer=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    normal = normals()
    mask, negative_mask = torch.ones(batch, 8, dtype=torch.bool), torch.ones(batch, 8, dtype=torch.bool)
    mask[:, 6:], negative_mask[:, 3:] = False, False
    arguments = {
        "prompt_embeds": normal(batch, 8, LAYERS, 24),
        "prompt_embeds_mask": mask,
        "negative_prompt_embeds": normal(batch, 8, LAYERS, 24),
        "negative_prompt_embeds_mask": negative_mask,
        "latents": normal(batch, height * width, 16),
        "height": 16 * height,
        "width": 16 * width,
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    return {**arguments, **changes}


CASES = [
    FamilyCase("krea2", build, call, num_calls=2),
    FamilyCase("krea2-no-cfg", build, functools.partial(call, guidance_scale=0.0)),
]
