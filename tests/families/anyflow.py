"""AnyFlow."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AnyFlowPipeline, AnyFlowTransformer3DModel, FlowMapEulerDiscreteScheduler

from families.case import FamilyCase, normals
from tiny import redraw

FRAMES = 3


def build() -> Any:
    torch.manual_seed(0)
    transformer = AnyFlowTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        text_dim=24,
        freq_dim=16,
        ffn_dim=64,
        num_layers=3,
        rope_max_seq_len=32,
    ).eval()
    redraw(transformer, 0)
    pipe = AnyFlowPipeline(
        tokenizer=None,
        text_encoder=None,
        transformer=transformer,
        vae=None,
        scheduler=FlowMapEulerDiscreteScheduler(shift=5.0),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    """Conditioned on one timestep: the other one moves on even where the first is held."""
    normal = normals()
    arguments = {
        "prompt_embeds": normal(batch, 9, 24),
        "latents": normal(batch, 4, FRAMES, 2 * height, 2 * width),
        "height": 16 * height,
        "width": 16 * width,
        "num_frames": 4 * (FRAMES - 1) + 1,
        "num_inference_steps": 6,
        "use_mean_velocity": False,
        "output_type": "latent",
    }
    return {**arguments, **changes}


def call_cfg(batch: int = 1, height: int = 4, width: int = 6) -> dict[str, Any]:
    return call(batch, height, width, negative_prompt_embeds=normals(2)(batch, 9, 24), guidance_scale=4.0)


def call_video(batch: int = 1, height: int = 4, width: int = 6) -> dict[str, Any]:
    return call(batch, height, width, video_latents=normals(3)(batch, 1, 4, 2 * height, 2 * width))


CASES = [
    FamilyCase("anyflow", build, call),
    FamilyCase("anyflow-cfg", build, call_cfg),
    FamilyCase("anyflow-given-frame", build, call_video),
]
