"""PixArt alpha and sigma: self-attention, uncached cross-attention to the text, learned sigma."""

from __future__ import annotations

from ras_dit.models.plan import TokenPlan, TokenSelect, picture_grid

PIXART = TokenPlan(
    transformer="PixArtTransformer2DModel",
    family="PixArt alpha, sigma",
    pipelines=("PixArtAlphaPipeline", "PixArtSigmaPipeline"),
    gather={"pos_embed": {0: TokenSelect()}},
    scatter="proj_out",
    attention={"transformer_blocks.*.attn1": "image"},
    grid=picture_grid,
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
