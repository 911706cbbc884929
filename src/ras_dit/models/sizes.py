"""From the size of a picture or video in pixels to its token grid, before anything runs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ras_dit.geometry import TokenGrid
from ras_dit.models.plan import TokenPlan

_SPATIAL = ("vae_scale_factor_spatial", "vae_spatial_compression_ratio", "vae_scale_factor")
_TEMPORAL = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio")


def grid_for_size(
    pipe: Any,
    token_plan: TokenPlan,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
) -> TokenGrid:
    """The token grid of a call of the pipeline.

    Args:
        pipe: the pipeline; its defaults stand in for None.
        token_plan: describes its transformer.
        height: in pixels.
        width: in pixels.
        num_frames: of a video.

    Raises:
        ValueError: a size that the pipeline cannot make.
    """
    scale = next((int(getattr(pipe, name)) for name in _SPATIAL if hasattr(pipe, name)), 8)
    patch_frames, patch_size = token_plan.patch(pipe.transformer)
    pixels = scale * patch_size
    tokens = []
    for name, size in (("height", height), ("width", width)):
        size = size or _default(pipe, name) or getattr(pipe, "default_sample_size", 128) * scale
        if size < pixels or size % pixels:
            raise ValueError(f"{name}: got {size}; allowed: multiples of {pixels} pixels, at least {pixels}.")
        tokens.append(size // pixels)
    frames = num_frames or _default(pipe, "num_frames") or 1
    temporal = next((int(getattr(pipe, name)) for name in _TEMPORAL if hasattr(pipe, name)), 4)
    latent_frames = (frames - 1) // temporal + 1
    return TokenGrid(tokens[0], tokens[1], patch_size, -(-latent_frames // patch_frames), patch_frames)


@dataclass(frozen=True)
class DefaultCall:
    """What a call of a pipeline does without being told.

    Attributes:
        num_inference_steps: denoising steps.
        max_sequence_length: text tokens.
        num_rows: rows of the transformer's batch for one picture: two with guidance, if the model was not distilled.
    """

    num_inference_steps: int
    max_sequence_length: int
    num_rows: int


def default_call(pipe: Any) -> DefaultCall | None:
    """The defaults of a pipeline; None if its steps, or the size of its pictures, cannot be told."""
    steps = _default(pipe, "num_inference_steps")
    if not steps or not (_default(pipe, "height") or hasattr(pipe, "default_sample_size")):
        return None
    return DefaultCall(steps, _default(pipe, "max_sequence_length") or 256, default_rows(pipe))


def default_rows(pipe: Any) -> int:
    """Rows of the transformer's batch for one picture at the pipeline's default guidance."""
    parameter = _parameters(pipe).get("guidance_scale")
    scale = None if parameter is None else parameter.default
    is_guided = isinstance(scale, (int, float)) and scale > 1
    return 2 if is_guided and not getattr(pipe.transformer.config, "guidance_embeds", False) else 1


def _default(pipe: Any, name: str) -> int | None:
    """The default of an argument of the pipeline's call, None without a number."""
    parameter = _parameters(pipe).get(name)
    return parameter.default if parameter is not None and isinstance(parameter.default, int) else None


def _parameters(pipe: Any) -> Mapping[str, inspect.Parameter]:
    """Of the pipeline's call; an outline of one names the class that it stands for."""
    return inspect.signature(getattr(pipe, "pipeline_class", type(pipe)).__call__).parameters
