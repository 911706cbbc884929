"""Plans by a few numbers: dense steps close together at the start, farther and farther apart, and close at the end.

Noise levels near 1 say the least about each other, so that most of a plan's dense steps belong there.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise, product

from ras_dit.tune.plans import MAX_RATIO, Ratios

GROWTHS = tuple(round(1 + 0.1 * tenth, 1) for tenth in range(31))
MAX_TAIL = 3
MAX_BETWEEN = 3
FROM_STEP = 0.125
"""Region steps begin at a multiple of this share of the run."""


@dataclass(frozen=True)
class Shape:
    """A plan.

    Attributes:
        warmup_steps: dense steps at the start (at least 1).
        gap: evaluations from the last of them to the next dense one (at least 2; the run's length: none comes).
        gap_growth: every distance is this times the one before it (at least 1; 1 is regular).
        tail: dense steps before the end of the run, their distances growing from it in the same way.
        region_from: share of the run from which on the steps between are region steps, in [0, 1]; before it they are
            skipped.
        sample_ratio: of region steps, in (0, 1).
        regions_between: region steps between two dense ones, evenly spread, the rest skipped; None: all that lie there.
    """

    warmup_steps: int
    gap: int
    gap_growth: float = 1.0
    tail: int = 0
    region_from: float = 0.0
    sample_ratio: float = 0.1
    regions_between: int | None = None

    def ratios(self, num_steps: int) -> Ratios:
        """The shares of a run of this many evaluations."""
        dense = self._dense(num_steps)
        regions = {i for i in self._regions(dense, num_steps) if i >= self.region_from * num_steps}
        return tuple(
            1.0 if index in dense else self.sample_ratio if index in regions else 0.0 for index in range(num_steps)
        )

    def _regions(self, dense: set[int], num_steps: int) -> set[int]:
        """Where region steps may stand; the end of the run counts as a dense step."""
        if self.regions_between is None:
            return set(range(num_steps)) - dense
        found, parts = set(), self.regions_between + 1
        for begin, end in pairwise(sorted({*dense, num_steps})):
            found |= {begin + round((end - begin) * part / parts) for part in range(1, parts)}
        return found - dense - {num_steps}

    def _dense(self, num_steps: int) -> set[int]:
        dense, last, place, width = set(range(self.warmup_steps)), num_steps - 1.0, float(num_steps), float(self.gap)
        for _ in range(self.tail):
            place -= width
            width *= self.gap_growth
            if place < self.warmup_steps:
                break
            dense.add(round(place))
            last = place - self.gap
        place, width = self.warmup_steps - 1.0, float(self.gap)
        while (place := place + width) <= last:
            dense.add(round(place))
            width *= self.gap_growth
        return dense

    @staticmethod
    def nearest(ratios: Ratios) -> Shape:
        """The shape whose dense steps lie nearest to a plan's, with regions as large together; of equal ones the
        simplest."""
        length = len(ratios)
        warmup = next((index for index, ratio in enumerate(ratios) if ratio < 1), length)
        later = [index for index, ratio in enumerate(ratios) if ratio == 1 and index >= warmup]
        regions = [index for index, ratio in enumerate(ratios) if 0 < ratio < 1]
        gap = max(2, later[0] - warmup + 1) if later else length
        begin = regions[0] if regions else length
        spread = _num_between(ratios, begin)
        is_skipped = 0 in ratios[: begin if spread is None else max(0, begin - gap)]
        begins = (round if spread is None else int)(begin / length / FROM_STEP) * FROM_STEP if is_skipped else 0.0
        ratio = sum(ratios[index] for index in regions) / len(regions) if regions else 0.1

        def apart(shape: Shape) -> int:
            """How far dense steps would have to be moved, all together."""
            found, wanted = shape._dense(length), {*range(warmup), *later}
            return sum(map(abs, accumulate((index in found) - (index in wanted) for index in range(length))))

        shapes = (
            Shape(warmup, gap, growth, tail, begins, ratio, spread)
            for tail, growth in product(range(MAX_TAIL + 1), GROWTHS)
        )
        best = min(shapes, key=apart)
        count = sum(0 < ratio < 1 for ratio in best.ratios(length))
        return replace(best, sample_ratio=min(MAX_RATIO, ratio * len(regions) / count)) if count else best


def _num_between(ratios: Ratios, begin: int) -> int | None:
    """How many region steps most stretches between dense steps have; None where all steps after the first are."""
    if 0 not in ratios[begin:]:
        return None
    dense = [index for index, ratio in enumerate(ratios) if ratio == 1] + [len(ratios)]
    counts = [sum(0 < ratio < 1 for ratio in ratios[a:b]) for a, b in pairwise(dense)]
    return Counter(min(count, MAX_BETWEEN) for count in counts if count).most_common(1)[0][0]
