"""Where the time of one step goes, by kind of operation, with a group for what RAS adds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

from ras_dit.bench.inside import PARTS, around_parts
from ras_dit.bench.loops import run_loop, short_call, short_config, synchronize, weights_device
from ras_dit.config import RASConfig

GROUPS = {
    "compiled": ("triton", "compiled", "inductor", "graph_"),
    "attention": ("scaled_dot_product", "flash", "fmha", "attention"),
    "linear": ("addmm", "mm", "gemm", "linear", "bmm", "matmul", "convolution", "cutlass", "nvjet"),
    "activation": ("gelu", "silu"),
    "norm": ("norm", "pow", "mean", "rsqrt", "sum"),
    "moving rows": ("copy", "cat", "index", "gather", "scatter", "clone", "where", "sort", "topk"),
}
OTHER, ADDED, WALL = "other", "added by RAS", "wall"
_MARK = "ras_dit."
_PROFILED = 3  # the fourth evaluation: in a region run the second one that is none of the warm-up


def profile_step(
    pipe: Any, call: dict[str, Any], config: RASConfig | None, calls_per_step: int, is_warm: bool = False
) -> dict[str, float]:
    """Milliseconds per group of one step, from its first transformer call to that of the next step.

    Guidance and the scheduler are in it. Times are the device's where there is one, else the processor's.

    Args:
        pipe: RAS is not enabled on it.
        call: arguments.
        config: of the region step; None profiles a dense one.
        calls_per_step: transformer calls of an evaluation.
        is_warm: such steps ran before, and nothing is recorded at the first of a session (`RASConfig.static_memory`):
            as few evaluations as show the step, not two short loops.

    Returns:
        Group -> milliseconds; ``wall`` is the step's time under the profiler.
    """
    from ras_dit.engine import accelerate

    index = 1 if is_warm and config is None else _PROFILED  # layers are timed at the first region step (`CPULayers`)
    short = short_call(call, index + 2) if is_warm else short_call(call)
    window = _Window(pipe, calls_per_step, index)
    if config is None:
        if not is_warm:
            run_loop(pipe, short)
        with window.open():
            run_loop(pipe, short)
    else:
        with accelerate(pipe, short_config(config)) as handle:
            if not is_warm:
                run_loop(pipe, short)
            with around_parts(handle, partial(_marked, index)), window.open():
                run_loop(pipe, short)
    return window.groups()


@contextmanager
def _marked(profiled: int, part: str, index: int) -> Iterator[None]:
    import torch

    with torch.profiler.record_function(_MARK + part) if index == profiled else nullcontext():
        yield


class _Window:
    """A profiler that is on from the first transformer call of one evaluation to that of the next."""

    def __init__(self, pipe: Any, calls_per_step: int, index: int) -> None:
        import torch

        self._pipe, self._calls_per_step, self._index, self._num_calls = pipe, calls_per_step, index, 0
        self._device = weights_device(pipe)
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(activities=activities)
        self._marks: list[float] = []

    @contextmanager
    def open(self) -> Iterator[None]:
        hook = self._pipe.transformer.register_forward_pre_hook(self._before, prepend=True)
        try:
            yield
        finally:
            hook.remove()

    def _before(self, *_: Any) -> None:
        step, call = divmod(self._num_calls, self._calls_per_step)
        self._num_calls += 1
        if call:
            return
        if step == self._index:
            synchronize(self._device)
            self._profiler.__enter__()
            self._marks.append(time.perf_counter())
        elif step == self._index + 1:
            synchronize(self._device)
            self._marks.append(time.perf_counter())
            self._profiler.__exit__(None, None, None)

    def groups(self) -> dict[str, float]:
        found = dict.fromkeys([*GROUPS, OTHER, ADDED], 0.0)
        for event in self._profiler.events():
            spent = self._spent(event)
            if spent:
                found[ADDED if _is_added(event) else group_of(event.name)] += spent / 1e3
        if not any(found.values()):
            raise RuntimeError("the profiler recorded no operation")
        wall = (self._marks[1] - self._marks[0]) * 1e3
        return {name: round(value, 3) for name, value in found.items()} | {WALL: round(wall, 3)}

    def _spent(self, event: Any) -> float:
        """Microseconds of an operation by itself, on the device where there is one."""
        import torch

        if event.device_type != torch.autograd.DeviceType.CPU:
            return 0.0  # kernels are counted with the operation that started them
        return float(event.self_cpu_time_total if self._device.type == "cpu" else event.self_device_time_total)


def group_of(name: str) -> str:
    """The group of an operation by its name."""
    lower = name.lower()
    return next((group for group, words in GROUPS.items() if any(word in lower for word in words)), OTHER)


def _is_added(event: Any) -> bool:
    while event is not None:
        if event.name.startswith(_MARK):
            return True
        event = event.cpu_parent
    return False


__all__ = ["ADDED", "GROUPS", "OTHER", "PARTS", "WALL", "group_of", "profile_step"]
