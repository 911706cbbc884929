"""The presets, and the plans they are made of."""

from __future__ import annotations

from collections.abc import Iterable

from ras_dit.config import RASConfig


def listed(
    dense: Iterable[int], ratio: float = 0.0, regions: Iterable[int] | None = None, num_steps: int = 28
) -> tuple[float, ...]:
    """A plan for ``step_ratios``.

    Args:
        dense: evaluations over all tokens.
        ratio: share of the tokens in region steps.
        regions: those evaluations; None for all from number 8 on that are not dense. All others are skipped.
        num_steps: evaluations of the run.
    """
    is_dense, is_region = set(dense), set(range(8, num_steps) if regions is None else regions)
    return tuple(1.0 if i in is_dense else ratio if i in is_region else 0.0 for i in range(num_steps))


PRESETS: dict[str, RASConfig] = {
    "quality": RASConfig(
        step_ratios=listed((0, 1, 2, 3, 4, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 26)),
        forecast_order=1,
        forecast_damping=0.8,
        forecast_below=0.9,
    ),
    "balanced": RASConfig(
        step_ratios=listed((0, 1, 2, 4, 7, 10, 13, 16, 19, 22, 25)),
        forecast_order=1,
        forecast_damping=0.7,
        forecast_below=0.93,
    ),
    "fast": RASConfig(
        step_ratios=listed((0, 1, 2, 5, 9, 13, 17, 21, 25)),
        forecast_order=1,
        forecast_damping=0.7,
    ),
    "regions": RASConfig(
        step_ratios=listed((0, 1, 2, 3, 4, 9, 14, 20, 26), 0.5, regions=(6, 11, 17, 22, 24)),
        forecast_order=1,
        forecast_damping=0.6,
        forecast_below=0.93,
        kv_forecast=0.8,
    ),
    "regions_fast": RASConfig(
        step_ratios=listed((0, 1, 2, 4, 9, 17, 25), 0.55, regions=(6, 13, 21)),
        forecast_order=1,
        forecast_damping=0.8,
        forecast_below=0.93,
    ),
}
"""Presets by name; how they were chosen is in docs/quality.md."""
