"""One denoising loop: run, timed as a whole and step by step, and short ones that show every kind of step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ras_dit.config import RASConfig
from ras_dit.seams import PatchedMethod

if TYPE_CHECKING:
    import torch

SHORT_STEPS = 6
SHORT_WARMUP = 2


def weights_device(pipe: Any) -> torch.device:
    """Where the transformer is."""
    return next(pipe.transformer.parameters()).device


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def run_loop(pipe: Any, call: dict[str, Any]) -> torch.Tensor:
    """The latents of a call; the same noise every time."""
    import torch

    if generator := call.get("generator"):
        generator.manual_seed(0)
    torch.manual_seed(0)
    with torch.no_grad():
        latents: torch.Tensor = pipe(**call)[0]
    return latents


def timed_loop(pipe: Any, call: dict[str, Any]) -> float:
    """Seconds of a call."""
    device = weights_device(pipe)
    synchronize(device)
    started = time.perf_counter()
    run_loop(pipe, call)
    synchronize(device)
    return time.perf_counter() - started


def short_call(call: dict[str, Any], num_steps: int = SHORT_STEPS) -> dict[str, Any]:
    """The same call in a few steps."""
    return {**call, "num_inference_steps": num_steps}


def short_config(config: RASConfig) -> RASConfig:
    """A config whose short loop has two dense steps, the second of which fills the cache, and then region steps."""
    ratio = config.sample_ratio
    if config.step_ratios:
        ratio = min(ratio for ratio in config.step_ratios if ratio > 0)
    plain = {"refresh_steps": (), "refresh_every": None, "skip_steps": (), "step_ratios": (), "end_step": None}
    return config.replace(sample_ratio=ratio, warmup_steps=SHORT_WARMUP, final_sample_ratio=None, **plain)


class StepTimer:
    """Times evaluations, without waiting for the device meanwhile.

    Args:
        pipe: its transformer gets hooks while `watching`, and its scheduler's step is wrapped if ``is_whole``.
        calls_per_step: calls that make one evaluation.
        is_whole: from the first call to the end of the scheduler's step, with guidance and all that RAS does; else the
            calls alone.
    """

    def __init__(self, pipe: Any, calls_per_step: int, is_whole: bool = False) -> None:
        self._pipe, self._calls_per_step, self._is_whole = pipe, calls_per_step, is_whole
        self._is_cuda = weights_device(pipe).type == "cuda"
        self._begun: list[Any] = []
        self._ended: list[Any] = []

    def _mark(self) -> Any:
        import torch

        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def watching(self) -> Iterator[StepTimer]:
        """Time the calls inside the block."""
        transformer = self._pipe.transformer
        hooks = [transformer.register_forward_pre_hook(lambda *_: self._begun.append(self._mark()), prepend=True)]
        patches = []
        if self._is_whole:
            patches.append(PatchedMethod(self._pipe.scheduler, "step", self._ending))
        else:
            hooks.append(transformer.register_forward_hook(lambda *_: self._ended.append(self._mark())))
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()
            for patch in patches:
                patch.release()

    def _ending(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            self._ended.append(self._mark())
            return result

        return step

    def seconds(self) -> list[float]:
        """Of every evaluation."""
        synchronize(weights_device(self._pipe))
        count = self._calls_per_step
        begun, ended = self._begun[:: count if self._is_whole else 1], self._ended
        if self._is_cuda:
            calls = [begin.elapsed_time(end) / 1e3 for begin, end in zip(begun, ended, strict=True)]
        else:
            calls = [end - begin for begin, end in zip(begun, ended, strict=True)]
        if self._is_whole:
            return calls
        return [sum(calls[index : index + count]) for index in range(0, len(calls), count)]


def by_step(runs: Sequence[Sequence[float]]) -> list[float]:
    """The median over runs of every step's seconds."""
    return [round(statistics.median(times), 6) for times in zip(*runs, strict=True)]
