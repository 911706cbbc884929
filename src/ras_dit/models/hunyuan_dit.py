"""HunyuanDiT: self-attention with rotary tables, U-shaped skips (rows of a step, consistently), cross-attention."""

from __future__ import annotations

from ras_dit.models.plan import TokenPlan, TokenSelect, picture_grid

HUNYUAN_DIT = TokenPlan(
    transformer="HunyuanDiT2DModel",
    family="HunyuanDiT 1.0 to 1.2",
    pipelines=("HunyuanDiTPipeline",),
    gather={
        "": {"image_rotary_emb": TokenSelect(dim=0), "controlnet_block_samples": TokenSelect()},
        "pos_embed": {0: TokenSelect()},
    },
    scatter="proj_out",
    attention={"blocks.*.attn1": "image"},
    grid=picture_grid,
    text=("encoder_hidden_states", "encoder_hidden_states_t5"),
    linears={
        "*.norm1.*": "row",
        "blocks.*.attn2.to_k": "text",
        "blocks.*.attn2.to_v": "text",
        "blocks.*": "image",
        "pos_embed.proj": "all_image",
        "text_embedder.*": "text",
        "proj_out": "image",
    },
    cross_attention=("blocks.*.attn2",),
    caveats=("Its default DDPMScheduler adds fresh noise at every step and runs dense; use DPM-Solver or DDIM.",),
)
