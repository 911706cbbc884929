"""What is known of the latest run of a pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ras_dit.config import RASConfig
from ras_dit.plan import Plan
from ras_dit.trace import Trace


@dataclass
class LatestRun:
    """What is known of one run; as the next one begins, another takes its place.

    Attributes:
        trace: what ran.
        plan: what was planned, with its cost; None of a run that is not followed.
        config: that it went by, likewise.
        num_references: tokens beside the grid.
        num_parts: images that region steps compute one after the other.
        costed: puts their cost to plans of such a run: (plan, images one after the other); None of a run that is not
            followed.
    """

    trace: Trace = field(default_factory=Trace)
    plan: Plan | None = None
    config: RASConfig | None = None
    num_references: int = 0
    num_parts: int = 1
    costed: Callable[..., Plan] | None = None
