"""HunyuanVideo 1.5: joint attention over (frame, row, column) tokens, then image and text tokens under a mask."""

from __future__ import annotations

from ras_dit.models.plan import TokenPlan, TokenSelect, video_grid

HUNYUAN_VIDEO15 = TokenPlan(
    transformer="HunyuanVideo15Transformer3DModel",
    family="HunyuanVideo 1.5",
    pipelines=("HunyuanVideo15Pipeline", "HunyuanVideo15ImageToVideoPipeline"),
    gather={
        "x_embedder": {0: TokenSelect()},
        "rope": {0: TokenSelect(dim=0), 1: TokenSelect(dim=0)},
    },
    scatter="proj_out",
    attention={"transformer_blocks.*.attn": "joint"},
    layout="image_first",
    mask_query=0,
    grid=video_grid,
    text=("encoder_hidden_states", "encoder_hidden_states_2", "image_embeds"),
    patch=lambda transformer: (transformer.config.patch_size_t, transformer.config.patch_size),
    linears={
        "context_embedder.time_text_embed.*": "row",
        "context_embedder.token_refiner.refiner_blocks.*.norm_out.*": "row",
        "context_embedder*": "text",
        "*.norm*": "row",
        "transformer_blocks.*.attn.add_*": "text",
        "transformer_blocks.*.attn.to_add_out": "text",
        "transformer_blocks.*.ff_context.*": "text",
        "transformer_blocks.*": "image",
        "x_embedder.*": "all_image",
        "proj_out": "image",
    },
)
