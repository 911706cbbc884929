"""AuraFlow: joint attention, text first (with eight register tokens in front of it)."""

from __future__ import annotations

from ras_dit.models.plan import TokenPlan, TokenSelect, picture_grid

AURAFLOW = TokenPlan(
    transformer="AuraFlowTransformer2DModel",
    family="AuraFlow 0.1 to 0.3",
    pipelines=("AuraFlowPipeline",),
    gather={"pos_embed": {0: TokenSelect()}},
    scatter="proj_out",
    attention={"joint_transformer_blocks.*.attn": "joint", "single_transformer_blocks.*.attn": "joint"},
    layout="text_first",
    grid=picture_grid,
    num_registers=8,
    scheduler_timestep=lambda timestep: timestep * 1000,
    text_rows={"encoder_hidden_states": 1},
    linears={
        "*.norm*": "row",
        "joint_transformer_blocks.*.attn.add_*": "text",
        "joint_transformer_blocks.*.attn.to_add_out": "text",
        "joint_transformer_blocks.*.ff_context.*": "text",
        "joint_transformer_blocks.*": "image",
        "single_transformer_blocks.*": "joint",
        "pos_embed.proj": "all_image",
        "context_embedder": "text",
        "proj_out": "image",
    },
)
