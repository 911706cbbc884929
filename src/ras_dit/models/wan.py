"""Wan 2.1 and 2.2: self-attention over (frame, row, column) tokens, uncached cross-attention to text and image."""

from __future__ import annotations

import dataclasses
from typing import Any

from ras_dit.geometry import TokenGrid
from ras_dit.models.plan import Arguments, TokenPlan, TokenSelect


def grid(transformer: Any, arguments: Arguments) -> TokenGrid:
    """The patch is (frames, rows, columns)."""
    patch_frames, patch_size, _ = transformer.config.patch_size
    return TokenGrid.of_video(arguments["hidden_states"], patch_size, patch_frames)


WAN = TokenPlan(
    transformer="WanTransformer3DModel",
    family="Wan 2.1, 2.2",
    pipelines=("WanPipeline", "WanImageToVideoPipeline", "WanVideoToVideoPipeline"),
    gather={
        "": {"timestep": TokenSelect()},
        "rope": {0: TokenSelect(), 1: TokenSelect()},
        "blocks.0": {"hidden_states": TokenSelect()},
    },
    scatter="proj_out",
    attention={"blocks.*.attn1": "image"},
    grid=grid,
    scheduler_timestep=lambda timestep: timestep.amax(),  # given tokens have lower ones
    patch=lambda transformer: tuple(transformer.config.patch_size[:2]),
    linears={
        # keys of the text and keys of the image prompt have layers of one size; the former stand for both
        "blocks.*.attn2.to_k": "text",
        "blocks.*.attn2.to_v": "text",
        "blocks.*.attn2.add_*": "row",
        "blocks.*": "image",
        "patch_embedding": "all_image",
        "condition_embedder.text_embedder.*": "text",
        "condition_embedder.time*": "timestep",
        "proj_out": "image",
    },
    text=("encoder_hidden_states", "encoder_hidden_states_image"),
    cross_attention=("blocks.*.attn2",),
    caveats=("Wan 2.2 14B has two transformers: the first evaluation of the second one is dense.",),
)

WAN_VACE = dataclasses.replace(
    WAN,
    transformer="WanVACETransformer3DModel",
    family="Wan VACE 2.1, 2.2",
    pipelines=("WanVACEPipeline",),
    gather={**WAN.gather, "vace_blocks.0": {"hidden_states": TokenSelect(), "control_hidden_states": TokenSelect()}},
    attention={"vace_blocks.*.attn1": "image", **WAN.attention},
    linears={
        "vace_blocks.*.attn2.to_k": "text",
        "vace_blocks.*.attn2.to_v": "text",
        "vace_blocks.*.attn2.add_*": "row",
        "vace_blocks.*": "image",
        "vace_patch_embedding": "all_image",
        **WAN.linears,
    },
    cross_attention=("vace_blocks.*.attn2", *WAN.cross_attention),
)
