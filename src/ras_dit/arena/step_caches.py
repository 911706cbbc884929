"""Step caches by others, as rivals: those of diffusers, and cache-dit's."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ras_dit.models import cache_hooks
from ras_dit.pipeline import transformers_of
from ras_dit.seams import PatchedMethod, PlainCopies

if TYPE_CHECKING:
    from ras_dit.arena.methods import Method

OWN = "arena-"
"""Contexts that the arena names, as their pipeline names none."""


@contextmanager
def cached(pipe: Any, method: Method, calibrate: Callable[[], Any] | None) -> Iterator[None]:
    """A method's step cache on a pipeline, while this is open.

    Args:
        pipe: RAS is not enabled on it.
        method: with a cache.
        calibrate: samples one picture; what a cache has to be fitted to is measured on it.
    """
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
        stack.enter_context(_hooked(pipe, method.cache.kind, options))
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
    plain = PlainCopies(pipe.scheduler, [patch])
    try:
        yield now
    finally:
        plain.release()
        patch.release()


@contextmanager
def _hooked(pipe: Any, kind: str, options: Mapping[str, Any]) -> Iterator[None]:
    """diffusers' cache hooks on a transformer of any class.

    Every guidance call of a step has a context of its own, named by the pipeline or by its number. (Pyramid attention
    broadcast and FasterCache know no contexts: more than one call per step is refused.)
    """
    from diffusers import hooks
    from diffusers.hooks.hooks import CacheContext, HookRegistry, StateManager, _set_cache_context

    known: dict[str, tuple[Any, Any]] = {
        "first_block": (hooks.apply_first_block_cache, hooks.FirstBlockCacheConfig),
        "taylorseer": (hooks.apply_taylorseer_cache, hooks.TaylorSeerCacheConfig),
        "magcache": (hooks.apply_mag_cache, hooks.MagCacheConfig),
        "pyramid": (hooks.apply_pyramid_attention_broadcast, hooks.PyramidAttentionBroadcastConfig),
        "faster": (hooks.apply_faster_cache, hooks.FasterCacheConfig),
    }
    put, config = known[kind]
    transformer: torch.nn.Module = pipe.transformer
    num_calls = 0  # of the step under way

    def set_context(*_: Any) -> None:
        nonlocal num_calls
        if num_calls and kind in ("pyramid", "faster"):
            raise ValueError(
                f"cache: {kind} keeps one state, and {type(pipe).__name__} calls its transformer more than once a step."
            )
        held = (vars(each).values() for one in registries() for each in one.hooks.values())
        given = next((part._context for parts in held for part in parts if isinstance(part, StateManager)), None)
        if given is None or given.name.startswith(OWN):
            _set_cache_context(transformer, CacheContext(f"{OWN}{num_calls}"))
        num_calls += 1

    def registries() -> Iterator[Any]:
        yield registry
        yield from registry._get_child_registries()

    def counting(original: Callable[..., Any]) -> Callable[..., Any]:
        def anew(*args: Any, **kwargs: Any) -> Any:
            nonlocal num_calls
            num_calls = 0
            return original(*args, **kwargs)

        return anew

    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    patches = [PatchedMethod(pipe.scheduler, name, counting) for name in ("set_timesteps", "step")]
    plain = PlainCopies(pipe.scheduler, patches)  # of the sound's scheduler, which counts no steps
    hook = transformer.register_forward_pre_hook(set_context)
    try:
        put(transformer, config(**options))
        if next(cache_hooks(transformer), None) is None:
            raise ValueError(f"cache: {kind} found nothing to hook in {type(transformer).__name__}.")
        registry.invalidate_child_registries_cache()
        yield
    finally:
        hook.remove()
        plain.release()
        for patch in patches:
            patch.release()
        for own, name in list(cache_hooks(transformer)):
            own.remove_hook(name, recurse=False)
        registry.invalidate_child_registries_cache()


def _magnitude_ratios(pipe: Any, steps: int, calibrate: Callable[[], Any] | None) -> list[float]:
    """What MagCache's calibration prints for this model and number of steps, on the first picture of the batch."""
    if calibrate is None:
        raise ValueError("magcache: got no calibrate function; it has to measure the model on one picture first.")
    printed = io.StringIO()
    with (
        _hooked(pipe, "magcache", {"calibrate": True, "num_inference_steps": steps}),
        contextlib.redirect_stdout(printed),
    ):
        calibrate()
    lists = [line for line in printed.getvalue().splitlines() if line.startswith("[") and line.endswith("]")]
    if not lists:
        raise RuntimeError("magcache: its calibration printed no ratios; diffusers may have changed it.")
    ratios: list[float] = json.loads(lists[0])  # one list per guidance call; the first one is that of the prompt
    return ratios


def import_cache_dit() -> Any:
    """The package that ``dbcache`` is of.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import cache_dit
    except ImportError as error:
        raise ImportError(f"dbcache: needs cache-dit: `pip install '.[arena]'` in the checkout ({error}).") from error
    return cache_dit


@contextmanager
def _db_cached(pipe: Any, method: Method) -> Iterator[None]:
    cache_dit = import_cache_dit()
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
