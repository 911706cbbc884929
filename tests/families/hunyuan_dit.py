"""HunyuanDiT."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, HunyuanDiT2DModel, HunyuanDiTPipeline

from families.case import FamilyCase, normals
from tiny import redraw


def build(scheduler: Any = None) -> Any:
    torch.manual_seed(0)
    transformer = HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        patch_size=2,
        sample_size=16,
        hidden_size=32,
        num_layers=4,
        cross_attention_dim=24,
        cross_attention_dim_t5=24,
        pooled_projection_dim=16,
        text_len=5,
        text_len_t5=6,
        activation_fn="gelu-approximate",
    ).eval()
    redraw(transformer, 0)
    pipe = HunyuanDiTPipeline(
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        scheduler=scheduler
        or DPMSolverMultistepScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=None,
        tokenizer_2=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    normal = normals()
    mask, mask_2 = torch.ones(batch, 5, dtype=torch.long), torch.ones(batch, 6, dtype=torch.long)
    mask[:, 3:], mask_2[:, 4:] = 0, 0
    arguments = {
        "prompt_embeds": normal(batch, 5, 24),
        "negative_prompt_embeds": normal(batch, 5, 24),
        "prompt_embeds_2": normal(batch, 6, 24),
        "negative_prompt_embeds_2": normal(batch, 6, 24),
        "prompt_attention_mask": mask,
        "negative_prompt_attention_mask": mask,
        "prompt_attention_mask_2": mask_2,
        "negative_prompt_attention_mask_2": mask_2,
        "latents": normal(batch, 4, 2 * height, 2 * width),
        "height": 16 * height,
        "width": 16 * width,
        "use_resolution_binning": False,
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    return {**arguments, **changes}


CASES = [
    FamilyCase("hunyuan-dit", build, call),
    FamilyCase("hunyuan-dit-ddim", lambda: build(DDIMScheduler(prediction_type="v_prediction")), call),
]
