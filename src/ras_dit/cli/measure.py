"""Dense and RAS from the same seed, timed turn by turn."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ras_dit.cli.pictures import Picture, paint
from ras_dit.config import RASConfig

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from ras_dit.cpu_layers import LayerTimings
    from ras_dit.engine import Summary
    from ras_dit.trace import Trace


@dataclass(frozen=True)
class Comparison:
    """Two pictures (or videos) of one seed and what they took.

    Attributes:
        picture: what was painted.
        dense: by the plain pipeline: a picture alone, or the frames of a video.
        accelerated: with RAS.
        trace: of the accelerated run.
        summary: likewise.
        dense_seconds: wall time of each dense call of the pipeline, text encoders and decoder included.
        ras_seconds: of each accelerated call.
    """

    picture: Picture
    dense: list[Image.Image]
    accelerated: list[Image.Image]
    trace: Trace
    summary: Summary
    dense_seconds: tuple[float, ...]
    ras_seconds: tuple[float, ...]

    @property
    def dense_median(self) -> float:
        return statistics.median(self.dense_seconds)

    @property
    def ras_median(self) -> float:
        return statistics.median(self.ras_seconds)

    @property
    def speedup(self) -> float:
        """Median dense time over median RAS time, of the whole pipeline call."""
        return self.dense_median / self.ras_median

    @property
    def psnr(self) -> float:
        """PSNR in dB; of a video over all of its frames."""
        from ras_dit.quality import psnr

        return psnr(_stacked(self.dense), _stacked(self.accelerated))

    @property
    def ssim(self) -> float:
        """SSIM; of a video the mean over its frames."""
        from ras_dit.quality import ssim

        return ssim(_stacked(self.dense), _stacked(self.accelerated))

    def to_dict(self) -> dict[str, Any]:
        """The numbers, as JSON holds them; the PSNR of equal pictures is None."""
        return {
            "picture": self.picture.to_dict(),
            "dense_seconds": list(self.dense_seconds),
            "ras_seconds": list(self.ras_seconds),
            "dense_median_seconds": self.dense_median,
            "ras_median_seconds": self.ras_median,
            "speedup": self.speedup,
            "speedup_limit": self.summary.speedup_limit,
            "predicted_speedup": self.summary.predicted_speedup,
            "num_steps": self.summary.num_steps,
            "token_steps": self.summary.token_steps,
            "psnr": self.psnr if math.isfinite(self.psnr) else None,
            "ssim": self.ssim,
            "notes": [*self.summary.notes, *self.summary.advice],
        }


def _stacked(frames: list[Image.Image]) -> torch.Tensor:
    """Frames as uint8 [F, C, H, W]."""
    import numpy as np
    import torch

    return torch.from_numpy(np.stack([np.asarray(frame) for frame in frames])).movedim(-1, 1)


def measure(
    pipe: Any,
    picture: Picture,
    config: RASConfig,
    *,
    repeats: int = 3,
    warm_up: bool = True,
    on_run: Callable[[], None] | None = None,
) -> Comparison:
    """Paint a picture dense and with RAS in turns.

    Args:
        pipe: a pipeline on which RAS is not enabled.
        picture: what to paint.
        config: for the accelerated runs.
        repeats: timed runs of each kind, at least 1.
        warm_up: run each kind once before, untimed.
        on_run: called after every run.
    """
    if repeats < 1:
        raise ValueError(f"--repeats: got {repeats}; allowed: at least 1.")
    from ras_dit.engine import accelerate

    dense_seconds, ras_seconds = [], []
    timings: LayerTimings = {}  # layers are timed in the first run, not anew in every one
    for number in range(repeats + warm_up):
        started = time.perf_counter()
        dense = paint(pipe, picture)
        dense_time = time.perf_counter() - started
        if on_run:
            on_run()
        with accelerate(pipe, config) as handle:
            handle._session.layer_timings.update(timings)
            started = time.perf_counter()
            accelerated = paint(pipe, picture)
            ras_time = time.perf_counter() - started
            summary = handle.summary()
            timings = handle._session.layer_timings
        if on_run:
            on_run()
        if number >= warm_up:
            dense_seconds.append(dense_time)
            ras_seconds.append(ras_time)
    return Comparison(picture, dense, accelerated, handle.trace, summary, tuple(dense_seconds), tuple(ras_seconds))


def decibels(value: float) -> str:
    """A PSNR as people read it."""
    return f"{value:.1f} dB" if math.isfinite(value) else "equal"


def times(value: float | None) -> str:
    """A speed-up as people read it."""
    return "-" if value is None else f"{value:.2f}x"
