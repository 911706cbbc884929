"""Whether what won on the calibration pictures holds on others, and what to take if it does not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ras_dit.arena.methods import Method
from ras_dit.files import save_text
from ras_dit.tune.measure import Bench, Measured, SceneSet
from ras_dit.tune.target import Target
from ras_dit.tune.trial import Trial

Status = Literal["met", "fallback", "missed"]
NUM_AT_LEAST = 3
"""Candidates that are validated even if the first of them will do."""
NUM_TIMED = 8
"""Calls that a dense call is timed beside."""


@dataclass(frozen=True)
class Validated:
    """What a config did on the validation pictures.

    Attributes:
        label: of the trial, or of the dense run.
        measured: every picture's values, and costs.
        intervals: metric name -> mean or quantile, and its 95 % bootstrap interval.
        cost: the share of the dense run's that counts.
        is_met: the target holds.
        is_sure: the whole of every interval meets its floor.
    """

    label: str
    measured: Measured
    intervals: dict[str, tuple[float, float, float]]
    cost: float
    is_met: bool
    is_sure: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "label": self.label,
            "quality": {name: [round(value, 4) for value in values] for name, values in self.intervals.items()},
            "cost": round(self.cost, 4),
            "costs": {name: round(value, 4) for name, value in self.measured.costs.items()},
            "is_met": self.is_met,
            "is_sure": self.is_sure,
            "notes": self.measured.notes,
            "per_picture": {n: [round(v, 4) for v in values] for n, values in self.measured.per_picture.items()},
        }


@dataclass(frozen=True)
class Verdict:
    """The outcome of a validation.

    Attributes:
        status: ``met`` by the first choice, by a ``fallback`` further down the front, or ``missed`` by all.
        chosen: the config to take; None if all missed.
        candidates: trials with what they did, in the order of choice.
    """

    status: Status
    chosen: Trial | None
    candidates: tuple[tuple[Trial, Validated], ...]

    @property
    def validated(self) -> Validated | None:
        """What the chosen one did."""
        return next((found for trial, found in self.candidates if trial is self.chosen), None)


@dataclass(frozen=True)
class Validation:
    """Held-out pictures.

    Attributes:
        folder: finished validations are kept here.
        bench: paints and measures.
        on: the pictures.
        target: what is asked for.
    """

    folder: Path
    bench: Bench
    on: SceneSet
    target: Target

    def choose(self, candidates: Sequence[Trial], on_candidate: Callable[[], None] = lambda: None) -> Verdict:
        """Validate candidates, best first: the first few, and more until one meets the target."""
        found: list[tuple[Trial, Validated]] = []
        for trial in candidates:
            if len(found) >= NUM_AT_LEAST and any(validated.is_met for _, validated in found):
                break
            method = Method("tuned", "ras", self.bench.steps, config=trial.config)
            found.append((trial, self.validate(trial.label, method)))
            on_candidate()
        place = next((place for place, (_, validated) in enumerate(found) if validated.is_met), None)
        if place is None:
            return Verdict("missed", None, tuple(found))
        return Verdict("fallback" if place else "met", found[place][0], tuple(found))

    def validate(self, label: str, method: Method) -> Validated:
        """What a method does on the pictures (read, if it was validated before)."""
        request = json.dumps(method.to_dict(), sort_keys=True)
        path = self.folder / f"{hashlib.sha256(request.encode()).hexdigest()[:16]}.json"
        if path.is_file():
            measured = Measured(**json.loads(path.read_text(encoding="utf-8")))
        else:
            measured = self.bench.measure(method, self.on, num_timed=NUM_TIMED)
            save_text(json.dumps(measured.to_dict()) + "\n", path)
        return self._judged(label, measured)

    def _judged(self, label: str, measured: Measured) -> Validated:
        target, cost = self.target, measured.costs[self.target.cost]
        intervals = {m.name: target.interval(m, measured.per_picture[m.name]) for m in target.metrics}
        middle = {name: values[0] for name, values in intervals.items()}
        worst = {m.name: intervals[m.name][1 if m.is_higher_better else 2] for m in target.metrics}
        return Validated(label, measured, intervals, cost, target.is_met(middle, cost), target.is_met(worst, cost))
