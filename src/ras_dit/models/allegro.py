"""Allegro: self-attention over (frame, row, column) tokens, uncached cross-attention to the text."""

from __future__ import annotations

from ras_dit.models.plan import TokenPlan, TokenSelect, video_grid

ALLEGRO = TokenPlan(
    transformer="AllegroTransformer3DModel",
    family="Allegro",
    pipelines=("AllegroPipeline",),
    gather={
        "": {"image_rotary_emb": TokenSelect()},
        "transformer_blocks.0": {"hidden_states": TokenSelect()},
    },
    scatter="proj_out",
    attention={"transformer_blocks.*.attn1": "image"},
    grid=video_grid,
    patch=lambda transformer: (transformer.config.patch_size_t, transformer.config.patch_size),
    linears={
        "transformer_blocks.*.attn2.to_k": "text",
        "transformer_blocks.*.attn2.to_v": "text",
        "transformer_blocks.*": "image",
        "pos_embed.proj": "all_image",
        "caption_projection.*": "text",
        "proj_out": "image",
    },
    cross_attention=("transformer_blocks.*.attn2",),
)
