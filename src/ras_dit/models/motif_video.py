"""Motif-Video: joint attention over (frame, row, column) tokens, then image and text tokens under a padding mask.

The last single-stream blocks are a decoder: the tokens of the patch embedding attend to themselves and to the
encoder's tokens, so that the grid is twice in one sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ras_dit.models.plan import FlopStream, Stream, TokenPlan, TokenSelect, video_grid


def decoder_blocks(transformer: Any) -> list[str]:
    """Paths of the decoder's blocks."""
    count, num_decoder = len(transformer.single_transformer_blocks), transformer.num_decoder_layers
    return [f"single_transformer_blocks.{number}" for number in range(count - num_decoder, count)]


class MotifVideoPlan(TokenPlan):
    """Which blocks are the decoder is for the config to say."""

    def attention_modules(self, transformer: torch.nn.Module) -> dict[str, tuple[torch.nn.Module, Stream]]:
        twice = {f"{path}.attn" for path in decoder_blocks(transformer)}
        found = super().attention_modules(transformer)
        return {name: (module, "twice" if name in twice else stream) for name, (module, stream) in found.items()}

    def linear_streams(self, transformer: torch.nn.Module) -> Mapping[str, FlopStream]:
        first: dict[str, FlopStream] = {"*.norm*": "row"}
        return first | {f"{path}.*": "twice" for path in decoder_blocks(transformer)} | dict(self.linears)


MOTIF_VIDEO = MotifVideoPlan(
    transformer="MotifVideoTransformer3DModel",
    family="Motif-Video",
    pipelines=("MotifVideoPipeline",),
    gather={
        "x_embedder": {0: TokenSelect()},
        "rope": {0: TokenSelect(dim=0), 1: TokenSelect(dim=0)},
    },
    scatter="proj_out",
    attention={"transformer_blocks.*.attn": "joint", "single_transformer_blocks.*.attn": "joint"},
    layout="image_first",
    grid=video_grid,
    text=("encoder_hidden_states", "image_embeds"),
    patch=lambda transformer: (transformer.config.patch_size_t, transformer.config.patch_size),
    linears={
        "*.norm*": "row",
        "*.cross_attn.to_[kv]": "text",
        "*.cross_attn.*": "image",
        "transformer_blocks.*.attn.add_*": "text",
        "transformer_blocks.*.attn.to_add_out": "text",
        "transformer_blocks.*.ff_context.*": "text",
        "transformer_blocks.*": "image",
        "single_transformer_blocks.*": "joint",
        "x_embedder.*": "all_image",
        "context_embedder.*": "text",
        "image_embedder.*": "text",
        "proj_out": "image",
    },
    cross_attention=("*transformer_blocks.*.cross_attn",),
)
