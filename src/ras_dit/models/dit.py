"""DiT, the class-conditional original: square pictures, learned sigma."""

from __future__ import annotations

from ras_dit.models.plan import TokenPlan, TokenSelect, picture_grid

DIT = TokenPlan(
    transformer="DiTTransformer2DModel",
    family="DiT-XL/2",
    pipelines=("DiTPipeline",),
    gather={"pos_embed": {0: TokenSelect()}},
    scatter="proj_out_2",
    attention={"transformer_blocks.*.attn1": "image"},
    grid=picture_grid,
    text=(),
    linears={
        "*.norm1.*": "row",
        "transformer_blocks.*": "image",
        "pos_embed.proj": "all_image",
        "proj_out_1": "row",
        "proj_out_2": "image",
    },
    caveats=("Square pictures only, as in diffusers. Use DDIM or DPM-Solver; DDPM runs dense.",),
)
