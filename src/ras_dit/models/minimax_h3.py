"""MiniMax-H3: video and sound in one stream without a batch: text, conditions, sound, then the video, rows by index."""

from __future__ import annotations

from typing import Any

from ras_dit.geometry import TokenGrid
from ras_dit.models.plan import Arguments, TokenPlan, TokenSelect


def grid(transformer: Any, arguments: Arguments) -> TokenGrid:
    """The sampled video stands last in the stream; conditions stand in front of the sampled sound."""
    is_sampled = arguments["video_indices"] > arguments["audio_indices"].max()
    num_tokens = int(is_sampled.sum())
    places = arguments["position_ids"][-num_tokens:]
    frames, height, width = (len(places[:, axis].unique()) for axis in range(3))
    patch_frames, patch_size, _ = transformer.config.patch_size
    num_before = len(is_sampled) - num_tokens
    return TokenGrid(height, width, patch_size, frames, patch_frames, num_before=num_before)


MINIMAX_H3 = TokenPlan(
    transformer="MiniMaxH3Transformer3DModel",
    family="MiniMax-H3",
    pipelines=("MiniMaxH3ModularPipeline",),
    gather={
        "rope": {0: TokenSelect(dim=0, stream="joint"), 1: TokenSelect(dim=0, stream="joint")},
        "transformer_blocks.0": {"hidden_states": TokenSelect(stream="joint")},
        "transformer_blocks.*": {"adaln_indices": TokenSelect(dim=0, stream="joint", is_common=True)},
        "norm_out": {"timestep_indices": TokenSelect(dim=0, stream="joint")},
    },
    scatter="norm_out",
    scatter_stream="joint",
    attention={"transformer_blocks.*.attn": "joint"},
    layout="text_first",
    grid=grid,
    scheduler_timestep=lambda timestep: timestep.min(),  # sound and conditions have less noise
    patch=lambda transformer: tuple(transformer.config.patch_size[:2]),
    count_others=lambda transformer, arguments, grid: len(arguments["audio_indices"]) + len(arguments["text_indices"]),
    linears={
        "*.adaln_proj.*": "row",
        "transformer_blocks.*": "joint",
        "proj_in": "all_image",
        "proj_out": "all_image",
        "audio_proj_*": "text",
        "context_embedder": "text",
        "token_refiner.*": "text",
    },
    caveats=(
        "Sound is computed in full, but for skipped steps, in which it is forecast.",
        "Calls with references, which another transformer serves, are dense.",
    ),
)
