"""PRX: image tokens attend to text tokens (keys and values only, text first) and to themselves."""

from __future__ import annotations

from ras_dit.models.plan import TokenPlan, TokenSelect, picture_grid

PRX = TokenPlan(
    transformer="PRXTransformer2DModel",
    family="PRX",
    pipelines=("PRXPipeline",),
    gather={"img_in": {0: TokenSelect()}, "pe_embedder": {0: TokenSelect(dim=2)}},
    scatter="final_layer.linear",
    attention={"blocks.*.attention": "joint"},
    layout="text_first",
    grid=picture_grid,
    scheduler_timestep=lambda timestep: timestep * 1000,
    text_rows={"encoder_hidden_states": 1, "attention_mask": 1},
    queries={"blocks.*.attention": "image"},
    linears={
        "blocks.*.modulation.*": "row",
        "blocks.*.attention.txt_kv_proj": "text",
        "blocks.*": "image",
        "img_in": "all_image",
        "img_in.*": "all_image",
        "txt_in": "text",
        "final_layer.linear": "image",
    },
)
