"""All trials as points of cost and quality, and what was chosen among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ras_dit.files import whole_file
from ras_dit.tune.target import Target
from ras_dit.tune.trial import Trial, front_of
from ras_dit.tune.tuning import Outcome

COLORS = {"known": "#c0392b", "options": "#1f6fc0", "plan": "#2e8b57"}
LABELS = {"known": "known configs", "options": "search over options", "plan": "plan search"}
COSTS = {"time": "time", "flops": "FLOPs", "token_steps": "token-steps"}


def plot(target: Target, outcome: Outcome, path: Path) -> None:
    """Draw the trials on the calibration pictures, their front, the target, and the choice on the validation pictures.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the plot needs matplotlib: `pip install '.[tune]'` in the checkout.") from error

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    _draw_trials(axes, target, outcome.trials)
    _draw_target(axes, target)
    _draw_validation(axes, target, outcome)
    axes.set_xlabel(f"{COSTS[target.cost]}, share of the dense run's")
    over = "mean" if target.quantile is None else f"quantile {target.quantile:g}"
    axes.set_ylabel(f"{target.main.name.upper()}, {over} over the pictures")
    if not target.main.is_higher_better:
        axes.invert_yaxis()
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.legend(loc="best", fontsize=8)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _draw_trials(axes: Any, target: Target, trials: tuple[Trial, ...]) -> None:
    name = target.main.name
    for stage, color in COLORS.items():
        for state, style in (
            ("measured", {"marker": "o", "s": 22}),
            ("pruned", {"marker": "x", "s": 18, "alpha": 0.5}),
        ):
            found = [t for t in trials if t.stage == stage and t.state == state and t.quality is not None]
            if found:
                label = LABELS[stage] if state == "measured" else f"{LABELS[stage]}, given up early (estimate)"
                values = [trial.quality[name] for trial in found if trial.quality is not None]
                axes.scatter([trial.cost for trial in found], values, color=color, label=label, **style)
    front = front_of(trials, target)
    values = [trial.quality[name] for trial in front if trial.quality is not None]
    axes.plot([trial.cost for trial in front], values, color="#888888", lw=1, zorder=0, label="front on calibration")


def _draw_target(axes: Any, target: Target) -> None:
    if target.max_cost is not None:
        axes.axvline(target.max_cost, color="#333333", ls="--", lw=1, label="budget")
    else:
        axes.axhline(target.floors[0].bound, color="#333333", ls="--", lw=1, label="target")


def _draw_validation(axes: Any, target: Target, outcome: Outcome) -> None:
    chosen, name = outcome.verdict.validated, target.main.name
    others = [found for _, found in outcome.verdict.candidates if found is not chosen]
    groups = (
        ([] if chosen is None else [chosen], "*", 11, "#000000", "chosen, on validation"),
        (others, "D", 5, "#000000", "other candidates, on validation"),
        (list(outcome.baselines), "s", 5, "#e08e0b", "fewer dense steps, on validation"),
    )
    for found, marker, size, color, label in groups:
        if found:
            middle, low, high = zip(*(validated.intervals[name] for validated in found), strict=True)
            down = [m - lo for m, lo in zip(middle, low, strict=True)]
            up = [hi - m for m, hi in zip(middle, high, strict=True)]
            at = [validated.cost for validated in found]
            axes.errorbar(
                at,
                middle,
                yerr=[down, up],
                fmt=marker,
                ms=size,
                mfc="none" if marker == "D" else color,
                lw=0.7,
                capsize=2,
                color=color,
                label=label,
            )
