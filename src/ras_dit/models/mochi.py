"""Mochi 1: joint attention over (frame, row, column) tokens, then the text without its padding, one video at a time."""

from __future__ import annotations

from ras_dit.models.plan import TokenPlan, TokenSelect, flat_video_grid

MOCHI = TokenPlan(
    transformer="MochiTransformer3DModel",
    family="Mochi 1",
    pipelines=("MochiPipeline",),
    gather={
        "rope": {0: TokenSelect(dim=0), 1: TokenSelect(dim=0)},
        "transformer_blocks.0": {"hidden_states": TokenSelect()},
    },
    scatter="proj_out",
    attention={"transformer_blocks.*.attn1": "joint"},
    layout="image_first",
    grid=flat_video_grid,
    linears={
        "*.norm*": "row",
        "transformer_blocks.*.attn1.add_*": "text",
        "transformer_blocks.*.attn1.to_add_out": "text",
        "transformer_blocks.*.ff_context.*": "text",
        "transformer_blocks.*": "image",
        "patch_embed.proj": "all_image",
        "time_embed.pooler.to_kv": "text",
        "time_embed.caption_proj": "text",
        "proj_out": "image",
    },
)
