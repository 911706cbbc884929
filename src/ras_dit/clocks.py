"""What watches a run without making the CPU wait for a GPU: clocks, and a check that all numbers are finite."""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from ras_dit.trace import StepTrace


class Stopwatch:
    """Adds the time of one transformer call to its step, without waiting for the device while the run is on."""

    def __init__(self, step: StepTrace, device: torch.device) -> None:
        self._step = step
        self._device, self._is_cuda = device, device.type == "cuda"
        self._is_timed = device.type in ("cpu", "cuda")  # others would have to be waited for
        self._started = self._mark()

    def _mark(self) -> Any:
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def stop(self) -> Stopwatch:
        self._stopped = self._mark()
        return self

    def read(self) -> None:
        """Write the time down (waits for the device); none of a device whose calls return before they are done."""
        if not self._is_timed:
            return
        if self._is_cuda:
            self._stopped.synchronize()
            seconds = self._started.elapsed_time(self._stopped) / 1000
        else:
            seconds = self._stopped - self._started
        self._step.seconds = (self._step.seconds or 0.0) + seconds


class FiniteCheck:
    """Whether all noise and latents of a run were finite. A GPU is asked at the end: the CPU does not wait for it."""

    def __init__(self) -> None:
        self._total: torch.Tensor | None = None  # of everything: not finite if any of it was not

    def add(self, model_output: torch.Tensor, sample: torch.Tensor) -> bool:
        """Take in an evaluation; False if it is known to hold values that are not finite."""
        total = model_output.sum(dtype=torch.float32) + sample.sum(dtype=torch.float32)
        self._total = total if self._total is None else self._total + total  # once not finite, it stays so
        return not total.is_cpu or math.isfinite(total.item())

    def was_true(self) -> bool:
        """Whether everything that was taken in was finite."""
        return self._total is None or math.isfinite(self._total.item())
