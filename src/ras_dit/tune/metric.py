"""How near pictures are to their references: what a target is set in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ras_dit.arena.metrics import MAX_PSNR
from ras_dit.arena.perceptual import MIN_LPIPS_SIZE, Perceptual
from ras_dit.quality import psnr, ssim

Measure = Callable[[torch.Tensor, torch.Tensor], list[float]]
"""From pictures and their references, uint8 [N, 3, H, W] each (videos [N, F, 3, H, W]), to a number for every one."""


@dataclass(frozen=True)
class Metric:
    """A distance between pictures, or a likeness.

    Attributes:
        name: as flags and reports say it.
        measure: see `Measure`.
        scale: a difference that matters; how far below its target a config may be after a few pictures before it is
            given up, and what misses of several targets are weighed by.
        is_higher_better: False for distances.
        limits: the values it can take.
        version: tells it from others of its name, as a digest of its weights does.
    """

    name: str
    measure: Measure
    scale: float
    is_higher_better: bool = True
    limits: tuple[float, float] = (0.0, float("inf"))
    version: str = ""

    def gain(self, value: float, other: float) -> float:
        """By how much the first value is better, in the metric's own unit."""
        return value - other if self.is_higher_better else other - value


def _psnr(pictures: torch.Tensor, references: torch.Tensor) -> list[float]:
    return [min(psnr(a, b), MAX_PSNR) for a, b in zip(pictures, references, strict=True)]


def _ssim(pictures: torch.Tensor, references: torch.Tensor) -> list[float]:
    return [ssim(a, b) for a, b in zip(pictures, references, strict=True)]


PSNR = Metric("psnr", _psnr, scale=3.0, limits=(0.0, MAX_PSNR))
SSIM = Metric("ssim", _ssim, scale=0.03, limits=(-1.0, 1.0))


def lpips(networks: Perceptual) -> Metric:
    """LPIPS with a network that was loaded (`Perceptual.load_lpips`); of a video the mean over its frames."""
    assert networks.lpips is not None

    def measure(pictures: torch.Tensor, references: torch.Tensor) -> list[float]:
        height, width = pictures.shape[-2:]
        if min(height, width) < MIN_LPIPS_SIZE:
            raise ValueError(
                f"lpips: got pictures of {width} x {height}; allowed: at least {MIN_LPIPS_SIZE} pixels a side."
            )
        values: list[float] = networks.lpips_between(pictures, references).tolist()
        return values

    return Metric("lpips", measure, scale=0.03, is_higher_better=False, version=networks.lpips[0])
