"""AuraFlow."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler

from families.case import FamilyCase, normals
from tiny import redraw


def build() -> Any:
    torch.manual_seed(0)
    transformer = AuraFlowTransformer2DModel(
        sample_size=16,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        caption_projection_dim=32,
        pos_embed_max_size=64,
    ).eval()
    redraw(transformer, 0)
    pipe = AuraFlowPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    normal = normals()
    mask = torch.ones(batch, 8, dtype=torch.long)
    arguments = {
        "prompt_embeds": normal(batch, 8, 24),
        "negative_prompt_embeds": normal(batch, 8, 24),
        "prompt_attention_mask": mask,
        "negative_prompt_attention_mask": mask,
        "latents": normal(batch, 4, 2 * height, 2 * width),
        "height": 16 * height,
        "width": 16 * width,
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    return {**arguments, **changes}


CASES = [
    FamilyCase("auraflow", build, call),
    FamilyCase("auraflow-no-cfg", build, lambda **size: call(**size, guidance_scale=1.0)),
]
