"""From the size of a picture or video in pixels to its token grid, before anything runs."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ras_dit.geometry import TokenGrid
from ras_dit.models.plan import TokenPlan

_SPATIAL = (
    "vae_scale_factor_spatial",
    "vae_spatial_compression_ratio",
    "vae_spatial_scale_factor",
    "vae_scale_factor",
)
_TEMPORAL = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio", "vae_temporal_scale_factor")


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
        ValueError: a size that the pipeline cannot make, or None where its default cannot be told.
    """
    scale = next((int(getattr(pipe, name)) for name in _SPATIAL if hasattr(pipe, name)), 8)
    patch_frames, patch_size = token_plan.patch(pipe.transformer)
    pixels = scale * patch_size
    tokens = []
    for name, size in (("height", height), ("width", width)):
        size = _default_side(pipe, name, scale) if size is None else size
        check_count(name, size)
        if size < pixels or size % pixels:
            raise ValueError(f"{name}: got {size}; allowed: multiples of {pixels} pixels, at least {pixels}.")
        tokens.append(size // pixels)
    frames = _default_frames(pipe) if num_frames is None else num_frames
    check_count("num_frames", frames)
    temporal = next((int(getattr(pipe, name)) for name in _TEMPORAL if hasattr(pipe, name)), 4)
    latent_frames = (frames - 1) // temporal + 1
    return TokenGrid(tokens[0], tokens[1], patch_size, -(-latent_frames // patch_frames), patch_frames)


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Refuse what is no int of at least ``least``."""
    is_count = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_count or value < least:
        raise ValueError(f"{name}: got {value!r}; allowed: an int of at least {least}.")


def _default_side(pipe: Any, name: str, scale: int) -> int:
    """The height or width of a call that does not say it, in pixels.

    Raises:
        ValueError: it cannot be told (an edit takes it from its picture).
    """
    pixels = [_default(pipe, name), getattr(pipe, f"default_{name}", None)]
    pixels += [dict(getattr(pipe, "config", {})).get("default_sample_size")]  # PRX; elsewhere it is one of latents
    options = (f"sample_{name}", "sample_size")
    latents = [getattr(pipe, "default_sample_size", None)]
    latents += [getattr(pipe.transformer.config, option, None) for option in options]
    found = [side for side in pixels if side] + [side * scale for side in latents if isinstance(side, (int, float))]
    if not found:
        raise ValueError(
            f"{name}: got none, and the default of {type(pipe).__name__} cannot be told; give height and width."
        )
    return int(found[0])


def _default_frames(pipe: Any) -> int:
    """The frames of a call that does not say it; 1 of a pipeline that does not ask for them.

    Raises:
        ValueError: they cannot be told.
    """
    frames = _default(pipe, "num_frames")
    if frames is None and {"num_frames", "video"} & set(_parameters(pipe)):
        raise ValueError(
            f"num_frames: got none, and the default of {type(pipe).__name__} cannot be told; give their number."
        )
    return frames or 1


@dataclass(frozen=True)
class DefaultCall:
    """What a call of a pipeline does without being told.

    Attributes:
        num_inference_steps: denoising steps.
        num_rows: rows of the transformer's batch for one picture: two with guidance, if the model was not distilled.
    """

    num_inference_steps: int
    num_rows: int


def default_call(pipe: Any) -> DefaultCall | None:
    """The defaults of a pipeline; None if its steps, or the size of its pictures, cannot be told."""
    steps = _default(pipe, "num_inference_steps")
    if not steps or not (_default(pipe, "height") or hasattr(pipe, "default_sample_size")):
        return None
    return DefaultCall(steps, default_rows(pipe))


def default_text(pipe: Any) -> int:
    """Text tokens of a prompt that the pipeline asks its encoder for, 256 where it has no number of its own."""
    return _default(pipe, "max_sequence_length") or 256


def default_rows(pipe: Any) -> int:
    """Rows of the transformer's batch for one picture at the pipeline's default guidance."""
    if has_two_guidances(pipe):
        return 1  # the guidance that takes a second row needs a negative prompt
    parameter = _parameters(pipe).get("guidance_scale")
    scale = None if parameter is None else parameter.default
    is_guided = isinstance(scale, (int, float)) and scale > 1
    return 2 if is_guided and not getattr(pipe.transformer.config, "guidance_embeds", False) else 1


def has_two_guidances(pipe: Any) -> bool:
    """Whether classifier-free guidance is ``true_cfg_scale``, and ``guidance_scale`` what a distilled model is told."""
    return "true_cfg_scale" in _parameters(pipe) and not hasattr(type(pipe), "do_classifier_free_guidance")


def _default(pipe: Any, name: str) -> int | None:
    """The default of an argument of the pipeline's call, None without a number."""
    parameter = _parameters(pipe).get(name)
    return parameter.default if parameter is not None and isinstance(parameter.default, int) else None


def _parameters(pipe: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(type(pipe).__call__).parameters
