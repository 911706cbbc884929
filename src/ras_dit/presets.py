"""The presets, and the plans they are made of, in numbers and in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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


def described(ratios: Sequence[float]) -> str:
    """A plan in a few words: ``dense at 0-3, 5 and 8, 2 region steps of 0.1 from 6 on, 1 skipped``."""
    dense = [index for index, ratio in enumerate(ratios) if ratio == 1]
    regions, skipped = [index for index, ratio in enumerate(ratios) if 0 < ratio < 1], list(ratios).count(0)
    words = [f"dense at {_spans(dense)}"]
    if regions:
        low, high = (f"{end(ratios[index] for index in regions):.3g}" for end in (min, max))
        share = low if low == high else f"{low} to {high}"
        if len(regions) == 1:
            words.append(f"a region step of {share} at {regions[0]}")
        else:
            words.append(f"{len(regions)} region steps of {share} from {regions[0]} on")
    if skipped:
        words.append(f"{skipped} skipped")
    return ", ".join(words)


def _spans(indices: list[int]) -> str:
    """``0-3, 5 and 8`` of 0, 1, 2, 3, 5, 8."""
    starts = [index for index in indices if index - 1 not in indices]
    ends = [index for index in indices if index + 1 not in indices]
    words = [f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True)]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


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
        forecast_damping=0.7,
        kv_forecast=0.8,
    ),
    "regions_fast": RASConfig(
        step_ratios=listed((0, 1, 2, 4, 9, 17, 25), 0.55, regions=(6, 13, 21)),
        forecast_order=1,
        forecast_damping=0.8,
        forecast_below=0.93,
    ),
    "regions_faster": RASConfig(
        step_ratios=listed((0, 1, 2, 5, 16, 25), 0.5, regions=(11, 21)),
        forecast_order=1,
        forecast_damping=0.5,
        forecast_below=0.96,
    ),
}
"""Presets by name; how they were chosen is in docs/quality.md."""
