"""AnyFlow (bidirectional): Wan 2.1 with a modulation per frame, for the timesteps a step leaves and reaches."""

from __future__ import annotations

from typing import Any

import torch

from ras_dit.geometry import TokenGrid
from ras_dit.models.plan import Arguments, TokenPlan, TokenSelect


def grid(transformer: Any, arguments: Arguments) -> TokenGrid:
    """Latents are [R, F, C, H, W]; a token lies in one frame."""
    return TokenGrid.of_video(arguments["hidden_states"], transformer.config.patch_size[1], channel_dim=2)


class AnyFlowPlan(TokenPlan):
    """Timesteps are per frame, and 0 for given ones, which the pipeline puts back after every step."""

    def given_tokens(self, arguments: Arguments, grid: TokenGrid, num_extra: int = 0) -> torch.Tensor | None:
        timestep = arguments[self.timestep]
        if timestep.ndim < 2 or timestep.shape[1] != grid.num_frames:
            return None
        is_given = timestep[:1].cpu() == 0
        return is_given.repeat_interleave(grid.tokens_per_frame, dim=1) if bool(is_given.any()) else None


ANYFLOW = AnyFlowPlan(
    transformer="AnyFlowTransformer3DModel",
    family="AnyFlow",
    pipelines=("AnyFlowPipeline",),
    gather={
        "condition_embedder": {0: TokenSelect(), 1: TokenSelect()},
        "blocks.0": {"hidden_states": TokenSelect()},
        "blocks.*": {"rotary_emb": TokenSelect(dim=2)},
    },
    scatter="proj_out",
    attention={"blocks.*.attn1": "image"},
    grid=grid,
    scheduler_timestep=lambda timestep: timestep.amax(),  # given frames have 0
    patch=lambda transformer: (1, transformer.config.patch_size[1]),
    text=("encoder_hidden_states", "encoder_hidden_states_image"),
    linears={
        "blocks.*.attn2.to_k": "text",
        "blocks.*.attn2.to_v": "text",
        "blocks.*": "image",
        "patch_embedding": "all_image",
        "condition_embedder.text_embedder.*": "text",
        "proj_out": "image",
    },
    cross_attention=("blocks.*.attn2",),
    caveats=("Made for few steps: of ten and fewer nothing should be left out.",),
)
