"""LTX-2: video and sound side by side. The video's tokens are chosen among; the sound is computed
in full, but for skipped steps."""

from __future__ import annotations

from typing import Any

from ras_dit.models.ltx import LTX
from ras_dit.models.plan import Arguments, TokenPlan, TokenSelect


def check(transformer: Any, arguments: Arguments) -> str | None:
    """A mask between single tokens would have to be cut in both directions."""
    if arguments.get("video_self_attention_mask") is not None:
        return "LTX-2 with a mask between video tokens (IC-LoRA) is not supported: the run was dense."
    if arguments.get("num_frames") is None:
        return "The call does not say how many frames there are: the whole run was dense."
    return None


LTX2 = TokenPlan(
    transformer="LTX2VideoTransformer3DModel",
    family="LTX-2, 2.3",
    pipelines=("LTX2Pipeline", "LTX2ImageToVideoPipeline"),
    gather={
        "": {"timestep": TokenSelect(), "video_keyframes_mask": TokenSelect()},
        "rope": {0: TokenSelect(dim=-2), 1: TokenSelect(dim=-2)},
        "cross_attn_rope": {0: TokenSelect(dim=-2), 1: TokenSelect(dim=-2)},
        "proj_in": {0: TokenSelect()},
    },
    scatter="proj_out",
    attention={"transformer_blocks.*.attn1": "image", "transformer_blocks.*.video_to_audio_attn": "image"},
    grid=LTX.grid,
    scheduler_timestep=LTX.scheduler_timestep,
    patch=LTX.patch,
    linears={
        "transformer_blocks.*.attn2.to_k": "text",
        "transformer_blocks.*.attn2.to_v": "text",
        "transformer_blocks.*.audio_to_video_attn.to_[qo]*": "image",
        "transformer_blocks.*.video_to_audio_attn.to_[kv]": "image",
        "transformer_blocks.*audio*": "row",
        "transformer_blocks.*": "image",
        "proj_in": "all_image",
        "time_embed.*": "timestep",
        "proj_out": "image",
        "caption_projection.*": "text",
    },
    queries={"*.video_to_audio_attn": "row"},  # the sound's, which are few
    cross_attention=("transformer_blocks.*.attn2",),
    check=check,
    caveats=(
        "Sound is computed in full, but for skipped steps, in which it is forecast; the cost model leaves it out.",
        "With a mask between video tokens (IC-LoRA), or weak conditions in every frame, runs are dense.",
    ),
)
