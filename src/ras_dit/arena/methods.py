"""What takes part in the arena: dense samplers, RAS, and the step caches a user would pick instead."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from ras_dit.arena.step_caches import cached
from ras_dit.config import RASConfig
from ras_dit.plan import build_plan
from ras_dit.schedule import is_euler

Group = Literal["ras", "cache", "dense", "converged", "baseline", "reference"]
"""Kinds of methods, each of a colour in plots: RAS, step caches, dense runs, the converged one, random or oldest
tokens, the authors' settings."""
Solver = Literal["euler", "ab2", "heun", "unipc", "dpm++", "euler-even", "ab2-even"]
"""``euler``: the pipeline's own scheduler, whatever it is. ``-even``: on a grid of even noise levels, 1 to 1 / steps,
to which the pipeline's shift is applied once."""
Cache = Literal["first_block", "taylorseer", "magcache", "pyramid", "faster", "dbcache"]
NUM_TOKENS = 4096
"""Of the picture that plans are counted for before there is one."""


_Euler: Any = FlowMatchEulerDiscreteScheduler  # diffusers has no types
_Levels = Sequence[float] | None  # pipelines look for ``sigmas`` among a scheduler's arguments


class AdamsBashforth2Scheduler(_Euler):  # type: ignore[misc]
    """Flow matching with Adams-Bashforth 2: the second-order dense baseline, one evaluation a step.

    x += (s' - s) (v + (s' - s) / 2 * (v - v_last) / (s - s_last)); the first step is Euler's.
    """

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, sigmas: _Levels = None, **options: Any
    ) -> None:
        """Begin a run."""
        super().set_timesteps(num_inference_steps, device, sigmas, **options)
        self._last: tuple[torch.Tensor, float] | None = None
        self._levels: list[float] | None = None

    def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, **options: Any) -> Any:
        """Advance the latents; arguments and result as in `FlowMatchEulerDiscreteScheduler`."""
        if self.step_index is None:
            self._init_step_index(timestep)
        if self._levels is None:  # all at once: to ask a GPU in every step would be to wait for it
            self._levels = self.sigmas.tolist()
        sigma, following = self._levels[self.step_index : self.step_index + 2]
        mean = model_output
        if self._last is not None:
            noise, earlier = self._last
            mean = model_output + (following - sigma) / 2 * (model_output - noise) / (sigma - earlier)
        self._last = (model_output, sigma)
        return super().step(mean, timestep, sample, **options)


class _EvenGrid:
    """Noise levels 1, 1 - 1 / S, ... 1 / S before the shift, where a pipeline asks for no others.

    (The grid that Stable Diffusion 3's pipeline asks for spends its last evaluation on hardly a hundredth of the path;
    few steps suffer from that.)
    """

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, sigmas: _Levels = None, **options: Any
    ) -> None:
        """Begin a run."""
        if num_inference_steps is not None and sigmas is None:
            sigmas = [1 - index / num_inference_steps for index in range(num_inference_steps)]
        above: Any = super()
        above.set_timesteps(num_inference_steps, device, sigmas, **options)


class EvenEulerScheduler(_EvenGrid, _Euler):  # type: ignore[misc]
    """Euler on an even grid."""


class EvenAdamsBashforth2Scheduler(_EvenGrid, AdamsBashforth2Scheduler):
    """Adams-Bashforth 2 on an even grid."""


class VisitingScheduler(AdamsBashforth2Scheduler):
    """Adams-Bashforth 2 on some points of the grid only: what dense steps would do where a plan has them.

    Attributes:
        visited: indices of the grid's points, from 0 on; set it before `set_timesteps`.
    """

    visited: tuple[int, ...] = ()

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, sigmas: _Levels = None, **options: Any
    ) -> None:
        """Begin a run over the visited points."""
        super().set_timesteps(num_inference_steps, device, sigmas, **options)
        kept, base = list(self.visited), vars(self)
        self.timesteps, self.sigmas = base["timesteps"][kept], base["sigmas"][[*kept, -1]]


@dataclass(frozen=True)
class StepCache:
    """A cache of whole steps or blocks by somebody else.

    Attributes:
        kind: ``first_block``, ``taylorseer``, ``magcache``, ``pyramid`` (attention broadcast) and ``faster`` are of
            diffusers, ``dbcache`` is of cache-dit.
        options: of its config class; for ``dbcache`` ``taylorseer_order`` adds the TaylorSeer calibrator.
    """

    kind: Cache
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Cache):
            raise ValueError(f"cache: got {self.kind!r}; allowed: {', '.join(get_args(Cache))}.")


@dataclass(frozen=True)
class Method:
    """One contestant.

    One of your own is a context manager that puts it on the pipeline and takes it off again::

        @contextmanager
        def teacache(pipe):
            pipe.transformer.forward = with_teacache(pipe.transformer, threshold=0.3)
            try:
                yield
            finally:
                del pipe.transformer.forward

        Method("TeaCache 0.3", "cache", 28, apply=teacache)

    Attributes:
        name: unique in an arena; the folder of its pictures is made of it.
        group: dense, reference, baseline, ras or cache: what it is drawn as.
        steps: denoising steps.
        solver: of the dense run, or under RAS.
        config: RAS, None without.
        cache: a step cache, None without.
        visited: points of the grid of ``steps`` that a dense run takes, with Adams-Bashforth 2; () takes all.
        apply: a method of your own, None without: takes the pipeline and returns the context manager in which it
            paints, anew for every call (with a score of your own: ``lambda pipe: ras_dit.enable(pipe, config,
            score=score)``). Folders know the function's name alone: when its code changes, change ``name``.
    """

    name: str
    group: Group
    steps: int = 28
    solver: Solver = "euler"
    config: RASConfig | None = None
    cache: StepCache | None = None
    visited: tuple[int, ...] = ()
    apply: Callable[[Any], AbstractContextManager[Any]] | None = None

    def __post_init__(self) -> None:
        if self.visited and (self.visited[0] != 0 or self.solver != "ab2"):
            raise ValueError(f"visited: got {self.visited} with {self.solver}; allowed: 0, ... with 'ab2'.")
        if self.group not in get_args(Group):
            raise ValueError(f"{self.name}: got the group {self.group!r}; allowed: {', '.join(get_args(Group))}.")
        if self.solver not in get_args(Solver):
            raise ValueError(f"solver: got {self.solver!r}; allowed: {', '.join(get_args(Solver))}.")
        if self.steps < 1:
            raise ValueError(f"steps: got {self.steps}; allowed: at least 1.")
        if self.config is not None and self.cache is not None:
            raise ValueError(f"{self.name}: got a RAS config and a step cache; give one of them.")
        if self.apply is not None and not (self.config is None and self.cache is None and callable(self.apply)):
            raise ValueError(f"{self.name}: got apply={self.apply!r}; allowed: a function, without config and cache.")

    @property
    def is_rival(self) -> bool:
        """Whether it is neither dense nor RAS, so that FLOPs alone tell what it computes."""
        return self.cache is not None or self.apply is not None

    @property
    def is_adaptive(self) -> bool:
        """Whether what it computes depends on the pictures."""
        return self.is_rival or (self.config is not None and self.config.refresh_tolerance is not None)

    @property
    def evaluations(self) -> int:
        """Transformer evaluations of the run, dense or not."""
        if self.visited:
            return len(self.visited)
        return 2 * self.steps - 1 if self.solver == "heun" else self.steps

    @property
    def token_steps(self) -> float | None:
        """T as planned for a picture of `NUM_TOKENS`; None where only the run tells."""
        if self.is_adaptive:
            return None
        if self.config is None:
            return float(self.evaluations)
        return build_plan(self.config, self.evaluations, NUM_TOKENS).token_steps

    @property
    def slug(self) -> str:
        """Its folder's name."""
        return re.sub(r"[^a-z0-9.+]+", "-", self.name.lower()).strip("-")

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON has it; methods that paint differently differ in it."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if not self.visited:
            del values["visited"]
        if self.apply is None:
            del values["apply"]
        else:
            values["apply"] = getattr(self.apply, "__qualname__", type(self.apply).__qualname__)
        values["config"] = None if self.config is None else self.config.to_dict()
        cache = self.cache
        values["cache"] = None if cache is None else {"kind": cache.kind, "options": dict(cache.options)}
        return values


@contextmanager
def applied(pipe: Any, method: Method, calibrate: Callable[[], Any] | None = None) -> Iterator[Any]:
    """A pipeline that samples by this method inside the block, and is as before after it.

    Args:
        pipe: a supported one.
        method: what to put on it.
        calibrate: paints one picture; for MagCache, which measures the model first.

    Yields:
        The RAS handle, None for other methods.

    Raises:
        ValueError: the solver does not fit the pipeline's scheduler.
        ImportError: cache-dit is not installed.
    """
    import ras_dit

    original = pipe.scheduler
    pipe.scheduler = scheduler_of(original, method.solver, method.visited)
    try:
        with ExitStack() as stack:
            if method.config is not None:
                stack.enter_context(ras_dit.accelerate(pipe, method.config))
            elif method.cache is not None:
                stack.enter_context(cached(pipe, method, calibrate))
            elif method.apply is not None:
                stack.enter_context(method.apply(pipe))
            yield ras_dit.handle_of(pipe)
    finally:
        pipe.scheduler = original


BY_OTHERS = ("heun", "unipc", "dpm++")
"""Solvers on schedulers of diffusers' own."""


def why_unfit(scheduler: Any, solver: Solver) -> str:
    """Why a pipeline with this scheduler cannot sample with a solver; empty if it can."""
    if solver == "euler":
        return ""
    if not is_euler(scheduler):
        return (
            f"solver: got {solver!r} on {type(scheduler).__name__}; other solvers than 'euler' (the pipeline's own) "
            "need a pipeline with FlowMatchEulerDiscreteScheduler."
        )
    for option in ("use_dynamic_shifting", "invert_sigmas"):
        if scheduler.config.get(option) and solver in BY_OTHERS:
            return f"solver: got {solver!r}; with {option} only 'euler' and 'ab2', even or not, are comparable."
    return ""


def scheduler_of(scheduler: Any, solver: Solver, visited: tuple[int, ...] = ()) -> Any:
    """A fresh scheduler of this order: ``euler``, ``ab2`` and ``heun`` on the noise levels of the pipeline's own (or on
    some of them), ``unipc`` and ``dpm++`` on those that they make of its shift, the others on an even grid.

    Raises:
        ValueError: the pipeline's scheduler is no flow-matching Euler one, or uses what the solver cannot.
    """
    config = scheduler.config
    if reason := why_unfit(scheduler, solver):
        raise ValueError(reason)
    if solver == "euler":
        return type(scheduler).from_config(config)
    if solver in ("euler-even", "ab2-even"):
        even: Any = EvenEulerScheduler if solver == "euler-even" else EvenAdamsBashforth2Scheduler
        return even.from_config(config)
    if visited:
        visiting = VisitingScheduler.from_config(config)
        visiting.visited = visited
        return visiting
    if solver == "ab2":
        return AdamsBashforth2Scheduler.from_config(config)
    if solver == "heun":
        return FlowMatchHeunDiscreteScheduler(num_train_timesteps=config.num_train_timesteps, shift=config.shift)
    kind = UniPCMultistepScheduler if solver == "unipc" else DPMSolverMultistepScheduler
    return kind(
        num_train_timesteps=config.num_train_timesteps,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=config.shift,
        solver_order=2,
    )
