"""What actually ran: one record per transformer evaluation of the conditional branch, and the map drawn from it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ras_dit.geometry import TokenGrid
from ras_dit.plan import StepKind

if TYPE_CHECKING:
    from PIL import Image


@dataclass
class StepTrace:
    """One evaluation.

    Attributes:
        kind: ``dense``, ``region`` or ``skip``, as it ran (not as it was planned).
        sigma: noise level it was evaluated at.
        active: computed token ids, LongTensor [B, num_active] ascending, one row per image; None when dense, [B, 0]
            when skipped.
        seconds: wall time of the evaluation's transformer calls (all branches); None while it is not known.
    """

    kind: StepKind
    sigma: float
    active: torch.Tensor | None = None
    seconds: float | None = None


@dataclass
class Trace:
    """The steps of the latest generation, in order.

    Attributes:
        grid: the token grid; None before the first generation.
        steps: see `StepTrace`.
        notes: why anything ran otherwise than planned, each reason once.
    """

    grid: TokenGrid | None = None
    steps: list[StepTrace] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Image tokens N of one image (0 before the first generation)."""
        return self.grid.num_tokens if self.grid else 0

    @property
    def token_steps(self) -> float:
        """T: the sum over steps of computed / all tokens."""
        return sum(self._share(step) for step in self.steps)

    def _share(self, step: StepTrace) -> float:
        return 1.0 if step.active is None else step.active.shape[1] / self.num_tokens

    @property
    def measured_speedup(self) -> float | None:
        """Time of as many dense evaluations (their median) over the time of those that ran; None while unknown.

        The transformer's calls alone are timed, and a run's own dense steps are the measure: see the benchmarks for
        whole runs side by side.
        """
        times = [(step.kind, step.seconds) for step in self.steps if step.seconds is not None]
        dense = sorted(seconds for kind, seconds in times if kind == "dense")
        total = sum(seconds for _, seconds in times)
        return dense[len(dense) // 2] * len(times) / total if dense and total else None

    def times_computed(self) -> torch.Tensor:
        """How often each token was computed, LongTensor [B, height, width] (video: [B, frames, height, width]); B is 1
        where every step was dense.

        Raises:
            ValueError: nothing has run yet.
        """
        if self.grid is None:
            raise ValueError("trace: got no generation yet; call the pipeline first.")
        batch = max((step.active.shape[0] for step in self.steps if step.active is not None), default=1)
        counts = torch.zeros(batch, self.num_tokens, dtype=torch.long, device="cpu")
        for step in self.steps:
            if step.active is None:
                counts += 1
            else:
                ids = step.active.cpu()
                counts.scatter_add_(1, ids, torch.ones_like(ids))
        return self.grid.as_image(counts)

    def _of_image(self, index: int) -> torch.Tensor:
        """Counts of one image of the batch; all are alike where every step was dense."""
        counts = self.times_computed()
        return counts[index if len(counts) > 1 else 0]

    def heatmap(self, image: Image.Image | None = None, *, index: int = 0, size: int = 512) -> Image.Image:
        """Where the compute went: bright where a token was computed often (the mean over a video's frames).

        Args:
            image: a picture to lay the map over; None draws the map alone.
            index: which image of the batch.
            size: longer side of the map in pixels without ``image`` (a colour bar comes below it); with one, its size.
        """
        from ras_dit.viz import draw_heatmap

        counts = self._of_image(index).float()
        counts = counts.mean(dim=0) if counts.ndim == 3 else counts
        return draw_heatmap(counts, num_steps=len(self.steps), image=image, size=size)

    def heatmaps(self, frames: Sequence[Image.Image], *, index: int = 0) -> list[Image.Image]:
        """The map of each frame of a video over it, in the colours of the whole; of a picture one map.

        A latent frame stands for several frames; each gets the map of the latent frame nearest to its place.

        Args:
            frames: of the video, or a picture alone.
            index: which video of the batch.
        """
        from ras_dit.viz import draw_heatmap

        counts = self._of_image(index)
        counts = counts[None] if counts.ndim == 2 else counts
        span = int(counts.min()), int(counts.max())
        last = max(len(frames) - 1, 1)
        return [
            draw_heatmap(counts[round(at * (len(counts) - 1) / last)], len(self.steps), frame, span=span)
            for at, frame in enumerate(frames)
        ]

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON holds it."""
        grid = self.grid
        return {
            "grid": None if grid is None else list(astuple(grid)),
            "notes": list(self.notes),
            "steps": [
                {
                    "kind": step.kind,
                    "sigma": step.sigma,
                    "active": None if step.active is None else step.active.tolist(),
                    "seconds": step.seconds,
                }
                for step in self.steps
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Trace:
        """The inverse of `to_dict`."""
        steps = [
            StepTrace(
                kind=step["kind"],
                sigma=step["sigma"],
                active=None if step["active"] is None else torch.tensor(step["active"], dtype=torch.long),
                seconds=step.get("seconds"),
            )
            for step in data["steps"]
        ]
        grid = None if data["grid"] is None else TokenGrid(*data["grid"])
        return cls(grid, steps, list(data.get("notes", ())))

    def to_json(self) -> str:
        """All of it, as ``ras-dit generate --trace`` writes it."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """The inverse of `to_json`."""
        return cls.from_dict(json.loads(text))


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
