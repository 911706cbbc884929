"""What takes part in the arena: dense samplers, RAS, and the step caches a user would pick instead."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from ras_dit.config import RASConfig
from ras_dit.models import cache_hooks
from ras_dit.pipeline import transformers_of
from ras_dit.plan import build_plan
from ras_dit.schedule import is_euler
from ras_dit.seams import PatchedMethod

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

    Attributes:
        name: unique in an arena; the folder of its pictures is made of it.
        group: dense, reference, baseline, ras or cache: what it is drawn as.
        steps: denoising steps.
        solver: of the dense run, or under RAS.
        config: RAS, None without.
        cache: a step cache, None without.
        visited: points of the grid of ``steps`` that a dense run takes, with Adams-Bashforth 2; () takes all.
    """

    name: str
    group: str
    steps: int = 28
    solver: Solver = "euler"
    config: RASConfig | None = None
    cache: StepCache | None = None
    visited: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.visited and (self.visited[0] != 0 or self.solver != "ab2"):
            raise ValueError(f"visited: got {self.visited} with {self.solver}; allowed: 0, ... with 'ab2'.")
        if self.solver not in get_args(Solver):
            raise ValueError(f"solver: got {self.solver!r}; allowed: {', '.join(get_args(Solver))}.")
        if self.steps < 1:
            raise ValueError(f"steps: got {self.steps}; allowed: at least 1.")
        if self.config is not None and self.cache is not None:
            raise ValueError(f"{self.name}: got a RAS config and a step cache; give one of them.")

    @property
    def is_adaptive(self) -> bool:
        """Whether what it computes depends on the pictures."""
        return self.cache is not None or (self.config is not None and self.config.refresh_tolerance is not None)

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
    original = pipe.scheduler
    pipe.scheduler = scheduler_of(original, method.solver, method.visited)
    try:
        with ExitStack() as stack:
            handle = None
            if method.config is not None:
                import ras_dit

                handle = stack.enter_context(ras_dit.accelerate(pipe, method.config))
            elif method.cache is not None:
                stack.enter_context(_cached(pipe, method, calibrate))
            yield handle
    finally:
        pipe.scheduler = original


def why_unfit(scheduler: Any, solver: Solver) -> str:
    """Why a pipeline with this scheduler cannot sample with a solver; empty if it can."""
    if solver == "euler":
        return ""
    if not is_euler(scheduler):
        return (
            f"solver: got {solver!r} on {type(scheduler).__name__}; other solvers than 'euler' (the pipeline's own) "
            "need a pipeline with FlowMatchEulerDiscreteScheduler."
        )
    if scheduler.config.get("use_dynamic_shifting") and solver in ("heun", "unipc", "dpm++"):
        return f"solver: got {solver!r}; with use_dynamic_shifting only 'euler' and 'ab2', even or not, are comparable."
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


@contextmanager
def _cached(pipe: Any, method: Method, calibrate: Callable[[], Any] | None) -> Iterator[None]:
    assert method.cache is not None
    if method.cache.kind == "dbcache":
        with _db_cached(pipe, method):
            yield
        return
    if len(transformers_of(pipe)) > 1:
        raise ValueError(f"{method.name}: got a pipeline with two transformers; diffusers puts a cache on one of them.")
    options = dict(method.cache.options)
    if method.cache.kind == "taylorseer":  # diffusers keeps what it predicts from in bfloat16 otherwise
        options["taylor_factors_dtype"] = next(pipe.transformer.parameters()).dtype
    if method.cache.kind == "magcache":
        options["num_inference_steps"] = method.steps
        options["mag_ratios"] = _magnitude_ratios(pipe, method.steps, calibrate)
    with ExitStack() as stack:
        if method.cache.kind in ("pyramid", "faster"):
            options["current_timestep_callback"] = stack.enter_context(_clock(pipe))
        stack.enter_context(_hooked(pipe.transformer, method.cache.kind, options))
        yield


@contextmanager
def _clock(pipe: Any) -> Iterator[Callable[[], float]]:
    """A function that tells the timestep of the call under way; some pipelines do not. It asks the scheduler, once a
    run: to ask a GPU in every call would be to wait for it."""
    times: list[float] = []

    def begin(set_timesteps: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            times.clear()
            return set_timesteps(*args, **kwargs)

        return wrapped

    def now() -> float:
        if not times:
            times.extend(pipe.scheduler.timesteps.tolist())
        return times[pipe.scheduler.step_index or 0]

    patch = PatchedMethod(pipe.scheduler, "set_timesteps", begin)
    try:
        yield now
    finally:
        patch.release()


@contextmanager
def _hooked(transformer: torch.nn.Module, kind: str, options: Mapping[str, Any]) -> Iterator[None]:
    """diffusers' cache hooks on a transformer of any class, all calls of the block in one context."""
    from diffusers import hooks
    from diffusers.hooks.hooks import CacheContext, HookRegistry, _set_cache_context

    known: dict[str, tuple[Any, Any]] = {
        "first_block": (hooks.apply_first_block_cache, hooks.FirstBlockCacheConfig),
        "taylorseer": (hooks.apply_taylorseer_cache, hooks.TaylorSeerCacheConfig),
        "magcache": (hooks.apply_mag_cache, hooks.MagCacheConfig),
        "pyramid": (hooks.apply_pyramid_attention_broadcast, hooks.PyramidAttentionBroadcastConfig),
        "faster": (hooks.apply_faster_cache, hooks.FasterCacheConfig),
    }
    put, config = known[kind]
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    try:
        put(transformer, config(**options))
        if next(cache_hooks(transformer), None) is None:
            raise ValueError(f"cache: {kind} found nothing to hook in {type(transformer).__name__}.")
        registry.invalidate_child_registries_cache()
        _set_cache_context(transformer, CacheContext("arena"))
        yield
    finally:
        for own, name in list(cache_hooks(transformer)):
            own.remove_hook(name, recurse=False)
        registry.invalidate_child_registries_cache()


def _magnitude_ratios(pipe: Any, steps: int, calibrate: Callable[[], Any] | None) -> list[float]:
    """What MagCache's calibration prints for this model and number of steps, on the first picture of the batch."""
    if calibrate is None:
        raise ValueError("magcache: got no calibrate function; it has to measure the model on one picture first.")
    printed = io.StringIO()
    with (
        _hooked(pipe.transformer, "magcache", {"calibrate": True, "num_inference_steps": steps}),
        contextlib.redirect_stdout(printed),
    ):
        calibrate()
    lists = [line for line in printed.getvalue().splitlines() if line.startswith("[") and line.endswith("]")]
    if not lists:
        raise RuntimeError("magcache: its calibration printed no ratios; diffusers may have changed it.")
    ratios: list[float] = json.loads(lists[-1])
    return ratios


@contextmanager
def _db_cached(pipe: Any, method: Method) -> Iterator[None]:
    try:
        import cache_dit
    except ImportError as error:
        raise ImportError(f"{method.name}: needs cache-dit: `pip install '.[arena]'` in the checkout.") from error
    assert method.cache is not None
    options = dict(method.cache.options)
    order = options.pop("taylorseer_order", None)
    calibrator = None
    if order is not None:  # without that of the text stream: SD3's last block returns none
        calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=order, enable_encoder_calibrator=False)
    cache_dit.enable_cache(pipe, cache_config=cache_dit.DBCacheConfig(**options), calibrator_config=calibrator)
    try:
        yield
    finally:
        cache_dit.disable_cache(pipe)
