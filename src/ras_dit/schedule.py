"""Reading a diffusers scheduler: noise levels, where a run begins in them, and whether noise can be carried along."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ras_dit.config import RASConfig


def first_index(scheduler: Any, timestep: Any, is_strict: bool = False) -> int | None:
    """Where in ``scheduler.timesteps`` a run begins (img2img begins in the middle).

    Args:
        scheduler: of the run.
        timestep: of its first call.
        is_strict: the nearest will not do; None if the timestep is none of them.
    """
    begin = getattr(scheduler, "begin_index", None)
    if begin is not None:
        return int(begin)
    at = float(timestep.flatten()[-1]) if isinstance(timestep, torch.Tensor) else float(timestep)
    nearest = int((scheduler.timesteps.float() - at).abs().argmin())
    return nearest if not is_strict or is_at(timestep, scheduler.timesteps[nearest], like=timestep) else None


def is_at(timestep: Any, expected: Any, like: Any) -> bool:
    """Whether a timestep is one of the scheduler's.

    Args:
        timestep: that a transformer was given, in the scheduler's form.
        expected: the scheduler's.
        like: the timestep as it was given, in a type that may round, or cut off what follows the point.
    """
    rounding = 1e-3
    if isinstance(like, torch.Tensor):
        is_float = like.dtype.is_floating_point
        rounding = rounding + 1000 * torch.finfo(like.dtype).eps if is_float else 1.0
    given = float(timestep.flatten()[-1]) if isinstance(timestep, torch.Tensor) else float(timestep)
    return abs(given - float(expected)) < rounding


def first_of_second(pipe: Any, scheduler: Any, first: int = 0) -> int | None:
    """The evaluation with which a pipeline's second transformer begins (Wan 2.2's for low noise); None without one.

    Args:
        pipe: its ``boundary_ratio`` is a share of the training timesteps.
        scheduler: with the timesteps of the run.
        first: where in them the run begins.
    """
    boundary = pipe.config.get("boundary_ratio")
    if boundary is None or getattr(pipe, "transformer_2", None) is None:
        return None
    is_second = scheduler.timesteps[first:] < boundary * scheduler.config.num_train_timesteps
    return int(is_second.int().argmax()) if bool(is_second.any()) else None


def noise_levels(scheduler: Any) -> list[float]:
    """The noise level in 0..1 of every evaluation of the schedule, and the last one reached (S + 1 numbers).

    Flow-matching schedulers say it themselves (sigma); for all others it is the timestep over the number of training
    timesteps.
    """
    timesteps = scheduler.timesteps
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None and len(sigmas) == len(timesteps) + 1 and float(sigmas[0]) <= 1.0:
        return [float(sigma) for sigma in sigmas.tolist()]
    return [float(t) / scheduler.config.num_train_timesteps for t in timesteps.tolist()] + [0.0]


def forecast_levels(scheduler: Any, levels: list[float]) -> list[float]:
    """What `RASConfig.forecast_below` is compared with: 1 is noise and 0 the picture, whatever the scheduler counts in.

    Args:
        scheduler: of the run.
        levels: what `noise_levels` says of it, or its last ones: sigmas that rise from 0 to 1 where they are inverted
            (Mochi, OmniGen), and noise over signal where they begin above 1 (Cosmos Predict2).
    """
    if scheduler.config.get("invert_sigmas", False):
        return [1 - level for level in levels]
    return [level / (1 + level) for level in levels] if max(noise_levels(scheduler)) > 1 else levels


_STOCHASTIC_CLASSES = (
    *("LCM", "SCM", "Ancestral", "SDE", "TCD", "DDPM", "SASolver", "CosineDPM", "CogVideoXDPM", "HeliosDMD"),
)


NOT_CARRIED = "noise cannot be carried from step to step, so the whole run was dense."
"""What the reason of `why_stochastic` comes to."""


def why_stochastic(scheduler: Any) -> str | None:
    """The reason why a scheduler adds fresh noise at every step, None if it does not."""
    name = type(scheduler).__name__
    if any(word in name for word in _STOCHASTIC_CLASSES):
        return f"{name} adds fresh noise at every step"
    if scheduler.config.get("stochastic_sampling", False):
        return f"{name} with stochastic_sampling=True adds fresh noise at every step"
    if "sde" in str(scheduler.config.get("algorithm_type", "")):
        return f"{name} with algorithm_type={scheduler.config['algorithm_type']!r} adds fresh noise at every step"
    return None


def why_stochastic_step(options: Mapping[str, Any]) -> str | None:
    """The reason why a step adds fresh noise, from its arguments (`DDIMScheduler`'s eta, `EulerDiscreteScheduler`'s
    s_churn); None if it does not."""
    for name in ("eta", "s_churn"):
        if options.get(name):
            return f"{name}={options[name]!r} adds fresh noise at every step"
    return None


def as_steps_allow(config: RASConfig, scheduler: Any, transformer: Any, note: Callable[[str], None]) -> RASConfig:
    """A config without the options that take Euler's steps along a velocity for granted, where steps are others.

    Args:
        config: of the run.
        scheduler: of the run.
        transformer: of the run.
        note: called if there is one that cannot be heeded.
    """
    if not (config.solver_order == 2 or config.forecast_midpoint):
        return config
    if getattr(getattr(transformer, "config", None), "use_meanflow", False):
        note(
            "solver_order=2 and forecast_midpoint do not go with a transformer that predicts the mean of a whole step "
            "(use_meanflow): its noise was taken as it is."
        )
        return config.replace(solver_order=1, forecast_midpoint=False)
    if is_euler(scheduler):
        return config
    note(
        "solver_order=2 and forecast_midpoint need FlowMatchEulerDiscreteScheduler, this is "
        f"{type(scheduler).__name__}: noise was taken at the beginning of each step."
    )
    return config.replace(solver_order=1, forecast_midpoint=False)


def is_euler(scheduler: Any) -> bool:
    """Whether a step goes along the model's output in sigma and does nothing else."""
    return any(cls.__name__ == "FlowMatchEulerDiscreteScheduler" for cls in type(scheduler).__mro__)


def num_evaluations(scheduler: Any, num_steps: int) -> int:
    """How often a transformer is evaluated in so many steps: a scheduler of second order (Heun) does it twice in all
    steps but the last."""
    order = getattr(scheduler, "order", 1)
    return num_steps * order - (order - 1)
