"""DiT, class-conditional."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel, DPMSolverMultistepScheduler

from families.case import FamilyCase
from tiny import redraw

TOKENS = 6  # per side


class Latents:
    """In place of a VAE: its pictures are the latents, which the pipeline does not return."""

    config = SimpleNamespace(scaling_factor=1.0)

    def decode(self, latents: torch.Tensor) -> Any:
        return SimpleNamespace(sample=latents.tanh())


def build(scheduler: Any = DDIMScheduler) -> Any:
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        sample_size=2 * TOKENS,
        patch_size=2,
    ).eval()
    redraw(transformer, 0)
    pipe = DiTPipeline(transformer=transformer, vae=None, scheduler=scheduler())
    pipe.vae = Latents()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = TOKENS, width: int = TOKENS, **changes: Any) -> dict[str, Any]:
    arguments = {
        "class_labels": [207, 360][:batch],
        "generator": torch.Generator().manual_seed(3),
        "num_inference_steps": 6,
        "output_type": "pt",
    }
    return {**arguments, **changes}


SQUARE = ((1, TOKENS, TOKENS), (2, TOKENS, TOKENS))
CASES = [
    FamilyCase("dit", build, call, sizes=SQUARE, samples_per_image=2),
    FamilyCase(
        "dit-no-cfg",
        functools.partial(build, DPMSolverMultistepScheduler),
        functools.partial(call, guidance_scale=1.0),
        sizes=SQUARE,
    ),
]
