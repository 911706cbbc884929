"""Bria FIBO 2."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import BriaFibo2Pipeline, BriaFibo2Transformer2DModel, FlowMatchEulerDiscreteScheduler

from families.case import FamilyCase, normals
from tiny import redraw


def build() -> Any:
    torch.manual_seed(0)
    transformer = BriaFibo2Transformer2DModel(
        in_channels=4,
        patch_size=2,
        dim=32,
        n_layers=3,
        n_refiner_layers=1,
        n_heads=2,
        cap_feat_dim=24,
        injection_layer_ids=(1,),
        perceiver_num_layers=1,
        min_num_gist_tokens=4,
        max_num_gist_tokens=8,
        gist_step=4,
        gist_min_text_len=4,
        gist_max_text_len=8,
        axes_dims=(4, 6, 6),
        axes_lens=(16, 16, 16),
    ).eval()
    transformer.requires_grad_(False)  # torch's counter fails on the learned queries of the gist tokens otherwise
    redraw(transformer, 0)
    pipe = BriaFibo2Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=None,
        text_encoder=None,
        processor=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    normal = normals()
    mask, negative_mask = torch.ones(batch, 8, dtype=torch.bool), torch.ones(batch, 8, dtype=torch.bool)
    mask[:, 6:], negative_mask[:, 4:] = False, False  # 8 and 4 gist tokens
    arguments = {
        "prompt_embeds": normal(batch, 2, 8, 24),
        "prompt_embeds_mask": mask,
        "negative_prompt_embeds": normal(batch, 2, 8, 24),
        "negative_prompt_embeds_mask": negative_mask,
        "latents": normal(batch, 4, 2 * height, 2 * width),
        "height": 16 * height,
        "width": 16 * width,
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    return {**arguments, **changes}


CASES = [
    FamilyCase("bria-fibo2", build, call, num_calls=2, flops_tolerance=0.15),
    FamilyCase("bria-fibo2-no-cfg", build, functools.partial(call, guidance_scale=1.0), flops_tolerance=0.15),
]
