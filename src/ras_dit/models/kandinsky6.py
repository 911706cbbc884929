"""Kandinsky 6: video and sound side by side. The video's tokens are chosen among; the sound is computed
in full, but for skipped steps."""

from __future__ import annotations

import torch

from ras_dit.geometry import TokenGrid
from ras_dit.models.kandinsky5 import grid
from ras_dit.models.plan import Arguments, TokenPlan, TokenSelect


class Kandinsky6Plan(TokenPlan):
    """A given picture is one more frame at the end, of a type of its own; it is not sampled."""

    def given_tokens(self, arguments: Arguments, grid: TokenGrid, num_extra: int = 0) -> torch.Tensor | None:
        types = arguments.get("visual_token_type_ids")
        return None if types is None else (types[:1] == 1).repeat_interleave(grid.tokens_per_frame, dim=1)


KANDINSKY6 = Kandinsky6Plan(
    transformer="Kandinsky6Transformer3DModel",
    family="Kandinsky 6",
    pipelines=("Kandinsky6TI2VAPipeline",),
    gather={
        "visual_transformer_blocks.0": {"vis": TokenSelect()},
        "visual_transformer_blocks.*": {"vis_rope": TokenSelect(dim=0, is_common=True)},
    },
    scatter="visual_transformer_blocks.-1",
    attention={
        "visual_transformer_blocks.*.video_dec_block.self_attention": "image",
        "visual_transformer_blocks.*.av_cross_attention": "image",
    },
    grid=grid,
    unbatched=("visual_rope_pos",),
    patch=lambda transformer: tuple(transformer.config.patch_size[:2]),
    linears={
        "*modulation*": "row",
        "visual_transformer_blocks.*.video_dec_block.cross_attention.to_key": "text",
        "visual_transformer_blocks.*.video_dec_block.cross_attention.to_value": "text",
        "visual_transformer_blocks.*.video_dec_block.*": "image",
        "visual_transformer_blocks.*.va_cross_attention.to_query": "image",
        "visual_transformer_blocks.*.va_cross_attention.out_layer": "image",
        "visual_transformer_blocks.*.av_cross_attention.to_[kv]*": "image",
        "*_text_transformer_blocks.*": "text",
        "video_text_embeddings.*": "text",
        "audio_text_embeddings.*": "text",
        "visual_embeddings.*": "all_image",
        "out_layer.out_layer": "all_image",
    },
    queries={"*.av_cross_attention": "row"},  # the sound's, which are few
    cross_attention=("visual_transformer_blocks.*.video_dec_block.cross_attention",),
    caveats=(
        "Sound is computed in full, but for skipped steps, in which it is forecast; the cost model leaves it out.",
    ),
)
