"""What is asked for: quality floors at the least cost, or the best quality within a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ras_dit.arena.metrics import mean_interval, quantile_interval
from ras_dit.tune.metric import PSNR, SSIM, Metric

Cost = Literal["time", "flops", "token_steps"]
Values = Mapping[str, Sequence[float]]
"""Metric name -> one value per picture."""


@dataclass(frozen=True)
class Floor:
    """The least quality (of a distance: the most of it) that will do."""

    metric: Metric
    bound: float

    def __post_init__(self) -> None:
        low, high = self.metric.limits
        if not low <= self.bound <= high:
            raise ValueError(
                f"{self.metric.name}: got the target {self.bound:g}; allowed: {low:g} to {high:g}, which is what it "
                "can be."
            )

    def __str__(self) -> str:
        return f"{self.metric.name} of at {'least' if self.metric.is_higher_better else 'most'} {self.bound:g}"


@dataclass(frozen=True)
class Target:
    """Floors at the least cost, or the best quality within a budget.

    Attributes:
        floors: all must hold; then the cost is made small. Empty with a budget.
        max_cost: the budget, a share of the dense run's cost in (0, 1); then the quality is made good.
        cost: what counts: ``time`` as measured, ``flops`` of the transformer, or ``token_steps`` (T).
        maximise: the metric that a budget is spent on.
        quantile: None judges the mean over the pictures; 0.1 the value that all but the worst tenth reach.

    Raises:
        ValueError: floors and a budget together or neither, or a value out of its range.
    """

    floors: tuple[Floor, ...] = ()
    max_cost: float | None = None
    cost: Cost = "time"
    maximise: Metric = PSNR
    quantile: float | None = None

    def __post_init__(self) -> None:
        if bool(self.floors) == (self.max_cost is not None):
            raise ValueError(
                f"target: got {'both floors and a budget' if self.floors else 'neither a floor nor a budget'}; give "
                "floors (--min-psnr, --min-ssim, --max-lpips) to make the cost small, or a budget (--max-cost) to make "
                "the quality good."
            )
        if self.max_cost is not None and not 0 < self.max_cost < 1:
            raise ValueError(f"--max-cost: got {self.max_cost}; allowed: a share of the dense run's cost in (0, 1).")
        if self.cost not in get_args(Cost):
            raise ValueError(f"--cost: got {self.cost!r}; allowed: {', '.join(get_args(Cost))}.")
        if self.quantile is not None and not 0 < self.quantile < 1:
            raise ValueError(f"--quantile: got {self.quantile}; allowed: a share of the pictures in (0, 1).")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """All that are measured: those asked for, then PSNR and SSIM."""
        asked = [floor.metric for floor in self.floors] or [self.maximise]
        return tuple({metric.name: metric for metric in (*asked, PSNR, SSIM)}.values())

    @property
    def main(self) -> Metric:
        """The one that trials are drawn and ranked by."""
        return self.metrics[0]

    def quality(self, values: Values) -> dict[str, float]:
        """Every metric over the pictures: its mean, or the quantile."""
        return {metric.name: self.interval(metric, values[metric.name])[0] for metric in self.metrics}

    def interval(self, metric: Metric, values: Sequence[float]) -> tuple[float, float, float]:
        """The mean or the quantile, and its 95 % bootstrap interval."""
        if self.quantile is None:
            return mean_interval(values)
        return quantile_interval(values, self.quantile if metric.is_higher_better else 1 - self.quantile)

    def misses(self, quality: Mapping[str, float], cost: float) -> dict[str, float]:
        """How far off every part of the target is: 0 or less where it is met, 1 for a difference that matters."""
        if self.max_cost is not None:
            return {"cost": (cost - self.max_cost) / self.max_cost}
        return {
            floor.metric.name: floor.metric.gain(floor.bound, quality[floor.metric.name]) / floor.metric.scale
            for floor in self.floors
        }

    def is_met(self, quality: Mapping[str, float], cost: float) -> bool:
        """Whether floors or budget hold."""
        return all(miss <= 0 for miss in self.misses(quality, cost).values())

    def score(self, quality: Mapping[str, float], cost: float) -> float:
        """What is made small among configs that meet the target."""
        return cost if self.max_cost is None else self.main.gain(0.0, quality[self.main.name])

    def rank(self, quality: Mapping[str, float], cost: float) -> tuple[float, float]:
        """Sorts configs: those that meet the target by their score, then the others by how far off they are."""
        miss = sum(max(0.0, value) for value in self.misses(quality, cost).values())
        return miss, self.score(quality, cost)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "floors": {floor.metric.name: floor.bound for floor in self.floors},
            "max_cost": self.max_cost,
            "cost": self.cost,
            "maximise": None if self.floors else self.maximise.name,
            "quantile": self.quantile,
            "versions": {metric.name: metric.version for metric in self.metrics if metric.version},
        }

    def __str__(self) -> str:
        over = "on average" if self.quantile is None else f"in all but {self.quantile:.0%} of the pictures"
        if self.floors:
            return f"{' and '.join(map(str, self.floors))} {over}, at the least {self.cost}"
        return f"the best {self.maximise.name} {over}, for at most {self.max_cost:.0%} of the dense {self.cost}"
