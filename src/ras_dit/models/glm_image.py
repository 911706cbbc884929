"""GLM-Image: joint attention, text (glyphs) first; a prior token per image token comes from a language model."""

from __future__ import annotations

from typing import Any

from ras_dit.models.plan import Arguments, TokenPlan, TokenSelect, picture_grid


def check(transformer: Any, arguments: Arguments) -> str | None:
    """Reference pictures put keys of their own in front, in one guidance branch only."""
    caches = arguments.get("kv_caches")
    if caches is not None and caches[0].mode is not None:
        return "GLM-Image with reference pictures is not supported: the run was dense."
    return None


GLM_IMAGE = TokenPlan(
    transformer="GlmImageTransformer2DModel",
    family="GLM-Image",
    pipelines=("GlmImagePipeline",),
    gather={
        "image_projector": {0: TokenSelect()},
        "prior_projector": {0: TokenSelect()},
        "rope": {0: TokenSelect(dim=0), 1: TokenSelect(dim=0)},
    },
    scatter="proj_out",
    attention={"transformer_blocks.*.attn1": "joint"},
    layout="text_first",
    grid=picture_grid,
    scheduler_timestep=lambda timestep: timestep + 1,
    text_rows={"encoder_hidden_states": 1, "attention_mask": 1},
    linears={
        "*.norm*": "row",
        "transformer_blocks.*": "joint",
        "image_projector.*": "all_image",
        "prior_projector.*": "all_image",
        "glyph_projector.*": "text",
        "proj_out": "image",
    },
    check=check,
    caveats=("With reference pictures the run is dense.",),
)
