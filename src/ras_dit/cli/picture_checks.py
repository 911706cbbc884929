"""What is checked of a picture before it is painted: its size, its steps, and where its prompt places it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from ras_dit import schedule
from ras_dit.cli.pictures import Picture, call_arguments
from ras_dit.config import RASConfig
from ras_dit.plan import build_plan

ROUNDING = (
    "EasyAnimateControlPipeline",
    "EasyAnimateInpaintPipeline",
    "EasyAnimatePipeline",
    "Krea2Pipeline",
)
"""Pipelines that round a size before they check it."""
STRICT = (
    "AllegroPipeline",
    "CogVideoX",
    "CogView3",
    "ConsisID",
    "JoyImageEditPlus",
    "MochiPipeline",
    "OmniGenPipeline",
    "ZImage",
)
"""How names of pipelines begin that fail at a size off the token grid, though their own check lets it pass."""
FITS = 1024
"""Pixels, a multiple of any token's: a side that was not given, of `STRICT`."""
PLACEHOLDER = "<img><|image_1|></img>"
"""Where in a prompt OmniGen reads the picture."""


def check_picture(pipe: Any, picture: Picture, config: RASConfig | None) -> None:
    """Refuse what a run would stumble over, as far as that can be told before it.

    Args:
        pipe: that will paint it.
        picture: as `ras_dit.cli.pictures.resolved` gives it.
        config: of RAS; None is a dense run.

    Raises:
        ValueError: an option or a size that the pipeline does not have, a prompt that does not say where the picture
            belongs, or a step of the config outside the run.
    """
    _check_placeholder(pipe, picture)
    _check_size(pipe, picture, call_arguments(pipe, picture))
    if config is None:
        return
    if config.rules == "reference":
        config = config.replace(skip_num_step=0, skip_num_step_length=0)  # how many may be dropped goes by the tokens
    build_plan(config, num_evaluations(pipe, picture), num_tokens=4096)  # the steps are checked, not those


def num_evaluations(pipe: Any, picture: Picture) -> int:
    """How often a picture's call evaluates its transformer for the whole picture, as far as can be told before it."""
    return schedule.num_evaluations(pipe.scheduler, _num_steps(pipe, picture))


def _num_steps(pipe: Any, picture: Picture) -> int:
    """How many of its steps a call takes: with a ``strength`` below 1 it begins later (``get_timesteps``)."""
    parameters, steps = inspect.signature(pipe.__call__).parameters, picture.steps
    if "denoise_strength" in parameters:  # LTX's conditions: its ``strength`` is how firmly the picture holds
        return steps
    parameter = parameters.get("strength")
    strength = parameter.default if parameter is not None and picture.strength is None else picture.strength
    if not isinstance(strength, (int, float)) or strength >= 1:
        return steps
    return steps - int(max(steps - steps * strength, 0))


def _check_placeholder(pipe: Any, picture: Picture) -> None:
    """Refuse a picture for OmniGen that the prompt gives no place."""
    name = type(pipe).__name__
    if name == "OmniGenPipeline" and picture.image is not None and PLACEHOLDER not in picture.prompt:
        raise ValueError(
            f"prompt: got {picture.prompt!r}; allowed (of an {name} with --image): texts that hold {PLACEHOLDER}; put "
            "it where the picture belongs."
        )


def _check_size(pipe: Any, picture: Picture, call: Mapping[str, Any]) -> None:
    """Refuse a size that neither fits the token grid nor is rounded by the pipeline, as FLUX's and Krea 2's do."""
    from ras_dit.models import token_plan_of
    from ras_dit.models.sizes import grid_for_size

    height, width = picture.height or picture.width, picture.width or picture.height
    if height is None or getattr(pipe, "transformer", None) is None or _rounds(pipe):
        return
    token_plan = token_plan_of(pipe.transformer)
    if type(pipe).__name__.startswith(STRICT):
        grid_for_size(pipe, token_plan, picture.height or FITS, picture.width or FITS, 1)
        return
    try:
        grid_for_size(pipe, token_plan, picture.height, picture.width, 1)
    except ValueError as error:
        if _refuses(pipe, {**call, "prompt": picture.prompt, "height": height, "width": width}):
            raise error


def _rounds(pipe: Any) -> bool:
    binning = "use_resolution_binning"  # to the sizes that a model was trained on
    return type(pipe).__name__ in ROUNDING or binning in inspect.signature(pipe.__call__).parameters


def _refuses(pipe: Any, call: Mapping[str, Any]) -> bool:
    """Whether a pipeline's own check of its arguments says no; what it is not told has the default of a call."""
    if not hasattr(pipe, "check_inputs"):
        return False
    defaults = {name: one.default for name, one in inspect.signature(pipe.__call__).parameters.items()}
    names = inspect.signature(pipe.check_inputs).parameters
    try:
        pipe.check_inputs(**{name: call.get(name, defaults.get(name)) for name in names})
    except ValueError:
        return True
    except Exception:  # some are told what a call has worked out by then
        return False
    return False
