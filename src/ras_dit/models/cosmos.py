"""Cosmos: self-attention over (frame, row, column) tokens, uncached cross-attention to text (and an image)."""

from __future__ import annotations

from typing import Any

import torch

from ras_dit.geometry import TokenGrid
from ras_dit.models.plan import Arguments, TokenPlan, TokenSelect
from ras_dit.models.wan import grid

PER_TOKEN = TokenSelect(dim=-2)  # [R, N, C]; of one timestep per row [R, C] it is the batch, and left alone


class CosmosPlan(TokenPlan):
    """Timesteps come per frame, [R, 1, F, 1, 1]; given frames have a lower one."""

    def has_timestep_per_token(self, arguments: Arguments, num_image_rows: int) -> bool:
        return arguments[self.timestep].ndim == 5

    def given_tokens(self, arguments: Arguments, grid: TokenGrid, num_extra: int = 0) -> torch.Tensor | None:
        if arguments[self.timestep].ndim != 5:
            return None
        per_frame = arguments[self.timestep][:1].flatten(1)
        is_given = (per_frame < per_frame.amax()).repeat_interleave(grid.tokens_per_frame, dim=1)
        return is_given if bool(is_given.any()) else None


def check(transformer: Any, arguments: Arguments) -> str | None:
    """Cosmos Predict1 steps its scheduler twice per evaluation (the first time for the clean latents)."""
    if arguments.get("fps") is not None and arguments["timestep"].ndim == 1:
        return "Cosmos Predict1 is not supported: the run was dense."
    return None


COSMOS = CosmosPlan(
    transformer="CosmosTransformer3DModel",
    family="Cosmos Predict2, Predict2.5",
    pipelines=("Cosmos2TextToImagePipeline", "Cosmos2VideoToWorldPipeline", "Cosmos2_5_PredictBasePipeline"),
    gather={
        "": {"block_controlnet_hidden_states": TokenSelect()},
        "rope": {0: TokenSelect(dim=0), 1: TokenSelect(dim=0)},
        "learnable_pos_embed": {0: TokenSelect()},
        "transformer_blocks.0": {"hidden_states": TokenSelect()},
        "transformer_blocks.*": {"embedded_timestep": PER_TOKEN, "temb": PER_TOKEN},
        "norm_out": {"embedded_timestep": PER_TOKEN, "temb": PER_TOKEN},
    },
    scatter="proj_out",
    attention={"transformer_blocks.*.attn1": "image"},
    grid=grid,
    timestep_is_level=True,
    patch=lambda transformer: tuple(transformer.config.patch_size[:2]),
    check=check,
    linears={
        "transformer_blocks.*.norm*": "timestep",
        "norm_out.*": "timestep",
        "transformer_blocks.*.attn2.to_k": "text",
        "transformer_blocks.*.attn2.to_v": "text",
        "transformer_blocks.*.attn2.[kv]_img": "row",
        "transformer_blocks.*": "image",
        "patch_embed.*": "all_image",
        "crossattn_proj.*": "text",
        "proj_out": "image",
    },
    cross_attention=("transformer_blocks.*.attn2",),
    caveats=("Cosmos Predict1 does not fit: it steps its scheduler twice per evaluation.",),
)
