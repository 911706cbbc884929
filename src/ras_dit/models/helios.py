"""Helios: Wan 2.1 one chunk of frames after the other; earlier frames stand in front of it, at three sizes."""

from __future__ import annotations

from typing import Any

from ras_dit.geometry import TokenGrid
from ras_dit.models.plan import Arguments, TokenPlan, TokenSelect
from ras_dit.models.wan import WAN


def num_history(transformer: Any, arguments: Arguments, grid: TokenGrid) -> int:
    """Tokens of earlier frames; sides are padded to multiples of a token's."""
    patch, count = transformer.config.patch_size, 0
    for name, factor in (("short", 1), ("mid", 2), ("long", 4)):
        latents = arguments.get(f"latents_history_{name}")
        if latents is not None:
            frames, height, width = (
                -(-size // (factor * side)) for size, side in zip(latents.shape[-3:], patch, strict=True)
            )
            count += frames * height * width
    return count


HELIOS = TokenPlan(
    transformer="HeliosTransformer3DModel",
    family="Helios",
    pipelines=("HeliosPipeline",),
    gather={
        "blocks.0": {"hidden_states": TokenSelect(stream="joint")},
        "blocks.*": {
            "temb": TokenSelect(stream="joint"),
            "rotary_emb": TokenSelect(stream="joint"),
            "original_context_length": TokenSelect(stream="joint"),
        },
        "norm_out": {"original_context_length": TokenSelect()},
    },
    scatter="proj_out",
    attention={"blocks.*.attn1": "joint"},
    layout="text_first",
    grid=WAN.grid,
    patch=WAN.patch,
    has_shared_positions=True,  # the table has a batch of one
    count_others=num_history,
    linears={
        "blocks.*.attn2.to_k": "text",
        "blocks.*.attn2.to_v": "text",
        "blocks.*.attn2.*": "image",
        "blocks.*": "joint",
        "patch_embedding": "all_image",
        "condition_embedder.text_embedder.*": "text",
        "proj_out": "image",
    },
    cross_attention=("blocks.*.attn2",),
    caveats=("Earlier frames are computed in every step. The cost counts as many text tokens as there are of those.",),
)
