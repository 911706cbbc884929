"""One config that was tried, and the best of many."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from ras_dit.config import RASConfig
from ras_dit.presets import described
from ras_dit.tune.measure import Measured
from ras_dit.tune.target import Target

Stage = Literal["known", "options", "plan"]
State = Literal["measured", "pruned", "not run"]


@dataclass(frozen=True)
class Trial:
    """One config and what came of it.

    Attributes:
        name: of a known config; empty for what the search made up.
        stage: tried first because it is known, found by the search over options, or by the plan search.
        config: what was tried.
        state: ``measured`` on all calibration pictures, ``pruned`` after some, or ``not run`` at all.
        reason: why it was pruned or not run.
        measured: on the calibration pictures; None if it was not run.
        quality: metric name -> mean or quantile; of a pruned one what it would come to, as far as one can tell.
        cost: the share of the dense run's that counts; None where it is not known.
    """

    name: str
    stage: Stage
    config: RASConfig
    state: State
    reason: str = ""
    measured: Measured | None = None
    quality: dict[str, float] | None = None
    cost: float | None = None

    @property
    def label(self) -> str:
        """Its name, or what differs from the defaults in its config."""
        if self.name:
            return self.name
        default, options = RASConfig().to_dict(), self.config.to_dict()
        changed = {key: value for key, value in options.items() if value != default[key] and key != "step_ratios"}
        is_long = {key: isinstance(value, list) and len(value) > 3 for key, value in changed.items()}
        words = [f"{len(value)} {key}" if is_long[key] else f"{key} {value}" for key, value in changed.items()]
        plan = [] if not self.config.step_ratios else [described(self.config.step_ratios)]
        return ", ".join([*plan, *words])

    def rank(self, target: Target) -> tuple[float, float]:
        """See `Target.rank`."""
        assert self.quality is not None
        assert self.cost is not None
        return target.rank(self.quality, self.cost)

    def is_met(self, target: Target) -> bool:
        """Whether it was measured on all pictures, and meets the target there."""
        if self.state != "measured":
            return False
        assert self.quality is not None
        assert self.cost is not None
        return target.is_met(self.quality, self.cost)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        values = {key: getattr(self, key) for key in ("name", "stage", "state", "reason", "quality", "cost")}
        measured = None if self.measured is None else self.measured.to_dict()
        return {**values, "config": self.config.to_dict(), "measured": measured}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Trial:
        """The inverse of `to_dict`."""
        measured = values["measured"]
        return cls(
            **{
                **values,
                "config": RASConfig.from_dict(values["config"]),
                "measured": None if measured is None else Measured(**measured),
            }
        )

    def again(self, name: str, stage: Stage) -> Trial:
        """The same, come by once more."""
        return replace(self, name=name, stage=stage)


def key_of(config: RASConfig) -> str:
    """Equal for equal configs."""
    return json.dumps(config.to_dict(), sort_keys=True)


def measured_trials(trials: Iterable[Trial]) -> list[Trial]:
    """Those measured on all pictures, every config once."""
    found: dict[str, Trial] = {}
    for trial in trials:
        if trial.state == "measured":
            found.setdefault(key_of(trial.config), trial)
    return list(found.values())


def best_of(trials: Iterable[Trial], target: Target) -> Trial | None:
    """The one that meets the target best (or misses it least); None without any that was measured."""
    return min(measured_trials(trials), key=lambda trial: trial.rank(target), default=None)


def front_of(trials: Iterable[Trial], target: Target) -> list[Trial]:
    """Those that no other beats in both cost and quality (by the target's main metric), cheapest first."""

    def gain(trial: Trial) -> float:
        assert trial.quality is not None
        return target.main.gain(trial.quality[target.main.name], 0.0)

    front: list[Trial] = []
    for trial in sorted(measured_trials(trials), key=lambda trial: (trial.cost, -gain(trial))):
        if not front or gain(trial) > gain(front[-1]):
            front.append(trial)
    return front


def candidates_of(trials: Iterable[Trial], target: Target) -> list[Trial]:
    """Those that meet the target on the calibration pictures and that no other such one beats, best first."""
    front = front_of([trial for trial in trials if trial.is_met(target)], target)
    return sorted(front, key=lambda trial: trial.rank(target))
