"""EasyAnimate 5.1: joint attention, text first, then (frame, row, column) tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ras_dit.models.plan import FlopStream, TokenPlan, TokenSelect, flat_video_grid


class EasyAnimatePlan(TokenPlan):
    """Blocks behind the first ``mmdit_layers`` have one set of layers for text and picture."""

    def linear_streams(self, transformer: torch.nn.Module) -> Mapping[str, FlopStream]:
        norms: dict[str, FlopStream] = {"*.norm*": "row"}
        blocks = enumerate(transformer.transformer_blocks)  # type: ignore[arg-type]
        single = [number for number, block in blocks if block.txt_ff is None]
        return norms | {f"transformer_blocks.{number}.*": "joint" for number in single} | dict(self.linears)


EASYANIMATE = EasyAnimatePlan(
    transformer="EasyAnimateTransformer3DModel",
    family="EasyAnimate 5, 5.1",
    pipelines=("EasyAnimatePipeline",),
    gather={
        "rope_embedding": {0: TokenSelect(dim=0), 1: TokenSelect(dim=0)},
        "transformer_blocks.0": {"hidden_states": TokenSelect()},
    },
    scatter="proj_out",
    attention={"transformer_blocks.*.attn1": "joint"},
    layout="text_first",
    grid=flat_video_grid,
    text=("encoder_hidden_states", "encoder_hidden_states_t5"),
    text_rows={"encoder_hidden_states": 1, "encoder_hidden_states_t5": 1},
    linears={
        "*.norm*": "row",
        "transformer_blocks.*.attn1.add_*": "text",
        "transformer_blocks.*.attn1.to_add_out": "text",
        "transformer_blocks.*.txt_ff.*": "text",
        "transformer_blocks.*": "image",
        "proj": "all_image",
        "text_proj*": "text",
        "proj_out": "image",
    },
)
