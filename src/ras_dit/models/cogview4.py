"""CogView4 and CogView3-Plus: joint attention, text first."""

from __future__ import annotations

from ras_dit.models.plan import TokenPlan, TokenSelect, picture_grid

COGVIEW4 = TokenPlan(
    transformer="CogView4Transformer2DModel",
    family="CogView4",
    pipelines=("CogView4Pipeline", "CogView4ControlPipeline"),
    gather={
        "patch_embed": {0: TokenSelect()},
        "rope": {0: TokenSelect(dim=0), 1: TokenSelect(dim=0)},
    },
    scatter="proj_out",
    attention={"transformer_blocks.*.attn1": "joint"},
    layout="text_first",
    grid=picture_grid,
    text_rows={"encoder_hidden_states": 1, "attention_mask": 1},
    linears={
        "*.norm*": "row",
        "transformer_blocks.*": "joint",
        "patch_embed.proj": "all_image",
        "patch_embed.text_proj": "text",
        "proj_out": "image",
    },
)

COGVIEW3_PLUS = TokenPlan(
    transformer="CogView3PlusTransformer2DModel",
    family="CogView3-Plus",
    pipelines=("CogView3PlusPipeline",),
    gather={"patch_embed": {0: TokenSelect(stream="joint")}},
    scatter="proj_out",
    attention={"transformer_blocks.*.attn1": "joint"},
    layout="text_first",
    grid=picture_grid,
    text_rows={"encoder_hidden_states": 1},
    linears={
        "*.norm*": "row",
        "transformer_blocks.*": "joint",
        "patch_embed.proj": "all_image",
        "patch_embed.text_proj": "text",
        "proj_out": "image",
    },
)
