"""CogVideoX: joint attention, text first, then (frame, row, column) tokens; noise [B, F, C, H, W]."""

from __future__ import annotations

import dataclasses
from typing import Any

from ras_dit.geometry import TokenGrid
from ras_dit.models.plan import Arguments, TokenPlan, TokenSelect


def grid(transformer: Any, arguments: Arguments) -> TokenGrid:
    """CogVideoX 1.5 packs frames into tokens as well."""
    config = transformer.config
    return TokenGrid.of_video(arguments["hidden_states"], config.patch_size, config.patch_size_t or 1, channel_dim=2)


def flat_frames_grid(transformer: Any, arguments: Arguments) -> TokenGrid:
    """ConsisID is made of CogVideoX 1.0: a token lies in one frame."""
    return TokenGrid.of_video(arguments["hidden_states"], transformer.config.patch_size, channel_dim=2)


def can_drop_text(transformer: Any) -> bool:
    """Positions that are added, fixed or learned, are added to text and picture as one sequence of full length."""
    config = transformer.config
    return bool(config.use_rotary_positional_embeddings and not config.use_learned_positional_embeddings)


COGVIDEOX = TokenPlan(
    transformer="CogVideoXTransformer3DModel",
    family="CogVideoX, CogVideoX 1.5",
    pipelines=("CogVideoXPipeline", "CogVideoXImageToVideoPipeline", "CogVideoXVideoToVideoPipeline"),
    gather={
        "": {"image_rotary_emb": TokenSelect(dim=0)},
        "patch_embed": {0: TokenSelect(stream="joint")},
    },
    scatter="proj_out",
    attention={"transformer_blocks.*.attn1": "joint"},
    layout="text_first",
    grid=grid,
    patch=lambda transformer: (transformer.config.patch_size_t or 1, transformer.config.patch_size),
    text_rows={"encoder_hidden_states": 1},
    can_drop_text=can_drop_text,
    linears={
        "*.norm*": "row",
        "transformer_blocks.*": "joint",
        "patch_embed.proj": "all_image",
        "patch_embed.text_proj": "text",
        "proj_out": "image",
    },
    caveats=(
        "`text_reuse` needs rotary positions alone: not CogVideoX-2B, nor CogVideoX-5B-I2V.",
        "CogVideoXDPMScheduler adds fresh noise at every step and runs dense; use CogVideoXDDIMScheduler.",
    ),
)

CONSISID = dataclasses.replace(
    COGVIDEOX,
    transformer="ConsisIDTransformer3DModel",
    family="ConsisID",
    pipelines=("ConsisIDPipeline",),
    grid=flat_frames_grid,
    patch=lambda transformer: (1, transformer.config.patch_size),
    caveats=COGVIDEOX.caveats[1:],
    linears={
        **COGVIDEOX.linears,
        "perceiver_cross_attention.*.to_q": "image",
        "perceiver_cross_attention.*.to_out": "image",
    },
)
