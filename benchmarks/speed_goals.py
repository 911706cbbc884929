"""What speed this project aims at, beside what was measured: the goals of region steps on a GPU and on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks import record
from benchmarks.speed_tables import at_their_best, speed_results

LEANEST = "ratio 0.125"


@dataclass(frozen=True)
class Goal:
    """One goal.

    Attributes:
        text: what it is.
        device: ``cuda`` or ``cpu``.
        case: that it is of; None for all that were timed there.
        figure: takes it from a row; None where the row has none.
        is_met: whether a figure is good enough.
        form: of a figure in the table.
        is_of: whether a row is one of those that it is taken from; the largest figure on a machine counts.
    """

    text: str
    device: str
    case: str | None
    figure: Callable[[dict[str, Any]], float | None]
    is_met: Callable[[float], bool]
    form: str
    is_of: Callable[[str], bool] = lambda name: True


def _share(row: dict[str, Any]) -> float | None:
    return row.get("share_of_limit")


def _speedup(row: dict[str, Any]) -> float | None:
    return row.get("speedup")


def _overhead(row: dict[str, Any]) -> float | None:
    found: float | None = row.get("overhead", {}).get("share")
    return found


def _memory(row: dict[str, Any]) -> float | None:
    found: float | None = (row.get("memory") or {}).get("extra_over_estimate")
    return found


def _everywhere(device: str, where: str) -> tuple[Goal, Goal]:
    small = f"Selection and forecast under 1 % of a dense step, {where}, the most of all settings"
    memory = f"Peak memory over dense at most 1.05 times the cache's estimate, {where}, the most of all settings"
    return (
        Goal(small, device, None, _overhead, lambda share: share < 0.01, "{:.2%}"),
        Goal(memory, device, None, _memory, lambda ratio: ratio <= 1.05, "{:.2f}"),
    )


_SD3, _LUMINA = "Stable Diffusion 3 medium, 1024 x 1024, 28 steps with guidance", "Lumina-Next, 1024 x 1024, 30 steps"
_MID = "mid-size model, 28 steps with guidance, over the best dense loop of the session"

GOALS = (
    Goal(f"{_SD3}: 95 % of the limit at .5", "cuda", "sd3-medium", _share, lambda x: x >= 0.95, "{:.1%}",
         lambda name: name == "ratio 0.5"),
    Goal(f"{_SD3}: 90 % of the limit at .125", "cuda", "sd3-medium", _share, lambda x: x >= 0.9, "{:.1%}",
         lambda name: name == LEANEST),
    Goal(f"{_SD3}: more than 3.0x at .125 (text reuse may be on)", "cuda", "sd3-medium", _speedup, lambda x: x > 3,
         "{:.2f}x", lambda name: name.startswith(LEANEST)),
    Goal(f"{_LUMINA}: 3.1x at .125", "cuda", "lumina-next", _speedup, lambda x: x >= 3.1, "{:.2f}x",
         lambda name: name == LEANEST),
    *_everywhere("cuda", "on a GPU"),
    Goal(f"{_MID}: 95 % of the limit at .25", "cpu", "mid", _share, lambda x: x >= 0.95, "{:.1%}",
         lambda name: name == "ratio 0.25"),
    Goal(f"{_MID}: 95 % of the limit at .125", "cpu", "mid", _share, lambda x: x >= 0.95, "{:.1%}",
         lambda name: name == LEANEST),
    *_everywhere("cpu", "on a CPU"),
)  # fmt: skip


def goals_table() -> str:
    """Every goal, and what was measured of it on every machine."""
    lines = ["| goal | measured | on | met |", "| --- | --- | --- | --- |"]
    for goal in GOALS:
        found = list(_figures(goal))
        lines += [f"| {goal.text} | {goal.form.format(value)} | {where} | {met} |" for where, value, met in found]
        lines += [] if found else [f"| {goal.text} | not measured yet | | |"]
    return "\n".join([*lines, ""])


def _figures(goal: Goal) -> Iterator[tuple[str, float, str]]:
    """Machine (with the case, where a goal is of all), the figure that counts there, and whether it is good enough."""
    by_machine: dict[str, list[tuple[float, str]]] = {}
    for result in at_their_best(list(speed_results())):
        if result["device"].split(":")[0] != goal.device or goal.case not in (None, result["case"]):
            continue
        for row in result["rows"]:
            value = goal.figure(row)
            if value is not None and goal.is_of(row["name"]):
                of = f"; {result['title']}, {row['name']}" if goal.case is None else f", {row['mode']}"
                by_machine.setdefault(record.machine(result), []).append((value, of))
    for machine, values in by_machine.items():
        value, of = max(values)
        yield machine + of, value, "yes" if goal.is_met(value) else "**no**"
