"""MiniMax-H3."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import MiniMaxH3Scheduler, MiniMaxH3Transformer3DModel
from diffusers.modular_pipelines.minimax_h3.modular_blocks_minimax_h3 import (
    MiniMaxH3CoreDenoiseStep,
    MiniMaxH3FL2VACoreDenoiseStep,
)

from families.case import FamilyCase, normals
from tiny import redraw

FRAMES = 37  # the fewest that the pipeline makes


class Still(MiniMaxH3Scheduler):
    """Of the sound: it stays as it is, so that the same video in gives the same noise out."""

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        super().set_timesteps(*args, **kwargs)
        self.timesteps[:] = 0.9

    def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, return_dict: bool = True) -> Any:
        return (sample,)


def build(blocks: Any = MiniMaxH3CoreDenoiseStep) -> Any:
    torch.manual_seed(0)
    transformer = MiniMaxH3Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        hidden_size=32,
        num_layers=3,
        num_refiner_layers=1,
        ffn_dim=64,
        text_dim=24,
        freq_dim=16,
        time_embed_hidden_dim=32,
        time_embed_dim=16,
        rope_freq_dim=2,
    ).eval()
    redraw(transformer, 0)
    pipe = blocks().init_pipeline()
    pipe.update_components(transformer=transformer, scheduler=MiniMaxH3Scheduler(), audio_scheduler=Still(3.0))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 2, width: int = 3, **changes: Any) -> dict[str, Any]:
    normal = normals()
    arguments = {
        "prompt_embeds": normal(1, 9, 24),
        "text_token_tags": torch.ones(9, dtype=torch.long),
        "latents": normal(1, 24, FRAMES, 2 * height, 2 * width),
        "audio_latents": normal(2, 32, 207),
        "height": 32 * height,
        "width": 32 * width,
        "num_frames": 124,
        "num_inference_steps": 9,
        "output": "latents",
    }
    return {**arguments, **changes}


def call_keyframe(batch: int = 1, height: int = 2, width: int = 3) -> dict[str, Any]:
    frame = normals(2)(1, 24, 1, 2 * height, 2 * width)
    generator = torch.Generator().manual_seed(5)
    keyframe = {"keyframe_anchors": ("first",), "condition_latents": [frame], "generator": generator}
    return call(batch, height, width, **keyframe)


ONE: dict[str, Any] = {"output": lambda latents: latents, "max_batch": 1, "sizes": ((1, 2, 3), (1, 3, 2))}
CASES = [
    FamilyCase("minimax-h3", build, call, flops_tolerance=0.05, **ONE),
    FamilyCase(
        "minimax-h3-keyframe",
        lambda: build(MiniMaxH3FL2VACoreDenoiseStep),
        call_keyframe,
        flops_tolerance=0.05,
        **ONE,
    ),
]
