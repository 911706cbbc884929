"""Kandinsky 5: self-attention over (frame, row, column) tokens, uncached cross-attention to the text."""

from __future__ import annotations

from typing import Any

from ras_dit.geometry import TokenGrid
from ras_dit.models.plan import Arguments, TokenPlan, TokenSelect


def grid(transformer: Any, arguments: Arguments) -> TokenGrid:
    """Latents keep their channels last: [R, F, H, W, C]."""
    patch_frames, patch_size, _ = transformer.config.patch_size
    frames, height, width = arguments["hidden_states"].shape[1:4]
    return TokenGrid(
        height // patch_size, width // patch_size, patch_size, frames // patch_frames, patch_frames, channel_dim=4
    )


def check(transformer: Any, arguments: Arguments) -> str | None:
    """Sparse (NABLA) attention goes through flex attention, over blocks of 8 x 8 tokens in an order of their own."""
    if arguments.get("sparse_params") is not None:
        return "Kandinsky 5 with sparse (nabla) attention is not supported: the run was dense."
    return None


KANDINSKY5 = TokenPlan(
    transformer="Kandinsky5Transformer3DModel",
    family="Kandinsky 5",
    pipelines=("Kandinsky5T2VPipeline", "Kandinsky5I2VPipeline", "Kandinsky5T2IPipeline", "Kandinsky5I2IPipeline"),
    gather={
        "visual_transformer_blocks.0": {"visual_embed": TokenSelect()},
        "visual_transformer_blocks.*": {"rope": TokenSelect(is_common=True)},
    },
    scatter="visual_transformer_blocks.-1",
    attention={"visual_transformer_blocks.*.self_attention": "image"},
    grid=grid,
    patch=lambda transformer: tuple(transformer.config.patch_size[:2]),
    check=check,
    linears={
        "*modulation*": "row",
        "visual_transformer_blocks.*.cross_attention.to_key": "text",
        "visual_transformer_blocks.*.cross_attention.to_value": "text",
        "visual_transformer_blocks.*": "image",
        "text_transformer_blocks.*": "text",
        "text_embeddings.*": "text",
        "visual_embeddings.*": "all_image",
        "out_layer.out_layer": "all_image",
    },
    cross_attention=("visual_transformer_blocks.*.cross_attention",),
    caveats=("With sparse (nabla) attention the run is dense.",),
)
