"""LTX-Video: self-attention over (frame, row, column) tokens, uncached cross-attention to the text."""

from __future__ import annotations

from typing import Any

from ras_dit.geometry import TokenGrid
from ras_dit.models.plan import Arguments, TokenPlan, TokenSelect


def grid(transformer: Any, arguments: Arguments) -> TokenGrid:
    """The pipeline passes the latent size beside the packed latents."""
    config = transformer.config
    p, f = config.patch_size, config.patch_size_t
    frames, height, width = (arguments[name] for name in ("num_frames", "height", "width"))
    return TokenGrid(height // p, width // p, p, frames // f, f)


LTX = TokenPlan(
    transformer="LTXVideoTransformer3DModel",
    family="LTX-Video 0.9",
    pipelines=("LTXPipeline",),
    gather={
        "": {"timestep": TokenSelect()},
        "rope": {0: TokenSelect(), 1: TokenSelect()},
        "proj_in": {0: TokenSelect()},
    },
    scatter="proj_out",
    attention={"transformer_blocks.*.attn1": "image"},
    grid=grid,
    patch=lambda transformer: (transformer.config.patch_size_t, transformer.config.patch_size),
    linears={
        "transformer_blocks.*.attn2.to_k": "text",
        "transformer_blocks.*.attn2.to_v": "text",
        "transformer_blocks.*": "image",
        "proj_in": "all_image",
        "time_embed.*": "timestep",
        "proj_out": "image",
        "caption_projection.*": "text",
    },
    cross_attention=("transformer_blocks.*.attn2",),
)
