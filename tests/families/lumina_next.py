"""Lumina-Next-T2I."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LuminaNextDiT2DModel, LuminaPipeline

from families.case import FamilyCase
from tiny import redraw


def build() -> Any:
    torch.manual_seed(0)
    transformer = LuminaNextDiT2DModel(
        sample_size=16,
        hidden_size=32,
        num_layers=3,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=16,
        cross_attention_dim=24,
    ).eval()
    redraw(transformer, 0)
    pipe = LuminaPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0),
        vae=None,
        text_encoder=None,
        tokenizer=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    mask = torch.ones(batch, 9, dtype=torch.long)
    mask[:, 7:] = 0
    negative_mask = torch.ones(batch, 9, dtype=torch.long)
    negative_mask[:, 3:] = 0
    arguments = {
        "prompt_embeds": normal(batch, 9, 24),
        "negative_prompt_embeds": normal(batch, 9, 24),
        "prompt_attention_mask": mask,
        "negative_prompt_attention_mask": negative_mask,
        "latents": normal(batch, 4, 2 * height, 2 * width),
        "height": 16 * height,
        "width": 16 * width,
        "num_inference_steps": 6,
        "guidance_scale": 4.0,
        "output_type": "latent",
    }
    return {**arguments, **changes}


CASES = [
    FamilyCase("lumina-next", build, call),
    FamilyCase("lumina-next-no-cfg", build, lambda **size: call(**size, guidance_scale=1.0)),
    FamilyCase(
        "lumina-next-plain-attention",
        build,
        lambda **size: call(**size, scaling_watershed=0.0, proportional_attn=False),
    ),
]
