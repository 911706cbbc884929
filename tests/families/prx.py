"""PRX."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, PRXPipeline, PRXTransformer2DModel

from families.case import FamilyCase, normals
from tiny import redraw


def build(**changes: Any) -> Any:
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "in_channels": 4,
        "patch_size": 2,
        "context_in_dim": 24,
        "hidden_size": 32,
        "num_heads": 2,
        "depth": 3,
        "axes_dim": [8, 8],
    }
    transformer = PRXTransformer2DModel(**{**config, **changes}).eval()
    redraw(transformer, 0)
    pipe = PRXPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=None,
        tokenizer=None,
        vae=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    normal = normals()
    mask, negative_mask = torch.ones(batch, 8, dtype=torch.bool), torch.ones(batch, 8, dtype=torch.bool)
    mask[:, 6:], negative_mask[:, 3:] = False, False
    arguments = {
        "prompt_embeds": normal(batch, 8, 24),
        "prompt_attention_mask": mask,
        "negative_prompt_embeds": normal(batch, 8, 24),
        "negative_prompt_attention_mask": negative_mask,
        "latents": normal(batch, 4, 2 * height, 2 * width),
        "height": 16 * height,
        "width": 16 * width,
        "use_resolution_binning": False,
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    return {**arguments, **changes}


ONE: dict[str, Any] = {"max_batch": 1, "flops_tolerance": 0.02}  # with guidance the pipeline takes one image at a time
CASES = [
    FamilyCase("prx", build, call, **ONE),
    FamilyCase("prx-no-cfg", build, functools.partial(call, guidance_scale=1.0), flops_tolerance=0.02),
    FamilyCase("prx-resolution", functools.partial(build, bottleneck_size=16, resolution_embeds=True), call, **ONE),
]
