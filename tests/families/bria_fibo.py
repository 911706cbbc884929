"""Bria FIBO."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import BriaFiboPipeline, BriaFiboTransformer2DModel, FlowMatchEulerDiscreteScheduler
from torch.utils._pytree import tree_map

from families.case import FamilyCase, normals
from tiny import redraw


class Pipeline(BriaFiboPipeline):
    """With the language model's part replaced: the pipeline does not take embeddings."""

    def encode_prompt(self, prompt: list[str], device: Any = None, **kwargs: Any) -> tuple[Any, ...]:
        normal, batch = normals(), len(prompt)
        mask, negative_mask = torch.ones(batch, 8), torch.ones(batch, 8)
        mask[:, 6:], negative_mask[:, 3:] = 0, 0
        layers = [[normal(batch, 8, 12) for _ in range(3)] for _ in range(2)]
        embeds, negative_embeds = normal(batch, 8, 24), normal(batch, 8, 24)
        encoded = embeds, negative_embeds, torch.zeros(batch, 8, 3), mask, negative_mask, *layers
        return tree_map(lambda tensor: tensor.to(device), encoded)


def build() -> Any:
    torch.manual_seed(0)
    transformer = BriaFiboTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=[4, 6, 6],
        text_encoder_dim=12,
    ).eval()
    redraw(transformer, 0)
    pipe = Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=None,
        text_encoder=None,
        tokenizer=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    arguments = {
        "prompt": ["not read"] * batch,
        "latents": normals()(batch, height * width, 4),
        "height": 16 * height,
        "width": 16 * width,
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    return {**arguments, **changes}


CASES = [
    FamilyCase("bria-fibo", build, call),
    FamilyCase("bria-fibo-no-cfg", build, functools.partial(call, guidance_scale=1.0)),
]
