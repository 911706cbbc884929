"""Krea 2: one stream, text first under a padding mask; the text was refined before by layers of its own."""

from __future__ import annotations

from typing import Any

from ras_dit.geometry import TokenGrid
from ras_dit.models.plan import Arguments, TokenPlan, TokenSelect


def grid(transformer: Any, arguments: Arguments) -> TokenGrid:
    """The pipeline passes (frame, row, column) of text (all zero) and picture."""
    num_tokens = arguments["hidden_states"].shape[1]
    height, width = (arguments["position_ids"][-num_tokens:, 1:].max(dim=0).values + 1).int().tolist()
    return TokenGrid(height, width, 2)


KREA2 = TokenPlan(
    transformer="Krea2Transformer2DModel",
    family="Krea 2",
    pipelines=("Krea2Pipeline",),
    gather={
        "": {"hidden_states": TokenSelect()},
        "rotary_emb": {0: TokenSelect(dim=0, stream="joint"), 1: TokenSelect(dim=0, stream="joint")},
    },
    scatter="final_layer",
    attention={"transformer_blocks.*.attn": "joint"},
    layout="text_first",
    grid=grid,
    patch=lambda transformer: (1, 2),
    scheduler_timestep=lambda timestep: timestep * 1000,
    count_others=lambda transformer, arguments, grid: arguments["encoder_hidden_states"].shape[1],
    text_rows={"encoder_hidden_states": 1, "encoder_attention_mask": None},
    repeats_keys=True,
    linears={
        "transformer_blocks.*": "joint",
        "img_in": "image",
        "txt_in.*": "text",
        "text_fusion.*": "text",
        "final_layer.linear": "image",
    },
    caveats=("The layers that refine the text run at every step; the cost counts them as one pass over it.",),
)
