"""HunyuanVideo: joint attention over (frame, row, column) tokens, then text under a padding mask."""

from __future__ import annotations

from typing import Any

from ras_dit.geometry import TokenGrid
from ras_dit.models.plan import Arguments, TokenPlan, TokenSelect, video_grid


def num_first(transformer: Any, arguments: Arguments, grid: TokenGrid) -> int:
    """A given first frame has modulations of its own, found by its place: all of its tokens are in every step."""
    return grid.tokens_per_frame if transformer.config.image_condition_type == "token_replace" else 0


HUNYUAN_VIDEO = TokenPlan(
    transformer="HunyuanVideoTransformer3DModel",
    family="HunyuanVideo",
    pipelines=("HunyuanVideoPipeline", "HunyuanVideoImageToVideoPipeline"),
    gather={
        "x_embedder": {0: TokenSelect()},
        "rope": {0: TokenSelect(dim=0), 1: TokenSelect(dim=0)},
    },
    scatter="proj_out",
    attention={"transformer_blocks.*.attn": "joint", "single_transformer_blocks.*.attn": "joint"},
    layout="image_first",
    grid=video_grid,
    num_first=num_first,
    patch=lambda transformer: (transformer.config.patch_size_t, transformer.config.patch_size),
    linears={
        "context_embedder.time_text_embed.*": "row",
        "context_embedder.token_refiner.refiner_blocks.*.norm_out.*": "row",
        "context_embedder.*": "text",
        "*.norm*": "row",
        "transformer_blocks.*.attn.add_*": "text",
        "transformer_blocks.*.attn.to_add_out": "text",
        "transformer_blocks.*.ff_context.*": "text",
        "transformer_blocks.*": "image",
        "single_transformer_blocks.*": "joint",
        "x_embedder.*": "all_image",
        "proj_out": "image",
    },
)
