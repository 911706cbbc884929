"""LTX-Video: self-attention over (frame, row, column) tokens, uncached cross-attention to the text."""

from __future__ import annotations

from typing import Any

import torch

from ras_dit.geometry import TokenGrid
from ras_dit.models.plan import Arguments, TokenPlan, TokenSelect


def grid(transformer: Any, arguments: Arguments) -> TokenGrid:
    """The pipeline passes the latent size beside the packed latents, or the coordinates of every token alone."""
    config = transformer.config
    if arguments.get("num_frames") is None:
        return grid_of_coordinates(arguments["video_coords"][0], config.patch_size, config.patch_size_t)
    p, f = config.patch_size, config.patch_size_t
    frames, height, width = (arguments[name] for name in ("num_frames", "height", "width"))
    return TokenGrid(height // p, width // p, p, frames // f, f)


def grid_of_coordinates(coordinates: torch.Tensor, patch_size: int, patch_frames: int) -> TokenGrid:
    """The grid of tokens at given places; frames of later conditions stand in front of it.

    Args:
        coordinates: time, row and column of every token [3, M + N]. Conditions are whole frames of the video's size,
            and later than its first frame, which is at time 0.
        patch_size: latent pixels per token side.
        patch_frames: latent frames per token.
    """
    height, width = (len(coordinates[axis].unique()) for axis in (1, 2))
    num_rows = coordinates.shape[1]
    num_before = int((coordinates[0] == 0).nonzero().max()) + 1 - height * width
    num_frames = (num_rows - num_before) // (height * width)
    return TokenGrid(height, width, patch_size, num_frames, patch_frames, num_before=num_before)


def check(transformer: Any, arguments: Arguments) -> str | None:
    """Coordinates beside a size: the pipeline of long videos gives a size of 1 x 1 x 1 then."""
    if arguments.get("num_frames") is None:
        return None
    if grid(transformer, arguments).num_tokens != arguments["hidden_states"].shape[1]:
        return "LTX-Video with latents that are not one video of the size given is not supported: the run was dense."
    return None


LTX = TokenPlan(
    transformer="LTXVideoTransformer3DModel",
    family="LTX-Video 0.9",
    pipelines=("LTXPipeline", "LTXImageToVideoPipeline", "LTXConditionPipeline"),
    gather={
        "": {"timestep": TokenSelect()},
        "rope": {0: TokenSelect(), 1: TokenSelect()},
        "proj_in": {0: TokenSelect()},
    },
    scatter="proj_out",
    attention={"transformer_blocks.*.attn1": "image"},
    grid=grid,
    scheduler_timestep=lambda timestep: timestep.amax(),  # given tokens have lower ones
    patch=lambda transformer: (transformer.config.patch_size_t, transformer.config.patch_size),
    linears={
        "transformer_blocks.*.attn2.to_k": "text",
        "transformer_blocks.*.attn2.to_v": "text",
        "transformer_blocks.*": "image",
        "proj_in": "all_image",
        "time_embed.*": "timestep",
        "proj_out": "image",
        "caption_projection.*": "text",
    },
    cross_attention=("transformer_blocks.*.attn2",),
    check=check,
)
