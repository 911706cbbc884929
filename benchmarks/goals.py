"""Ours against whatever else costs as much, at five budgets: the shortest answer that the arena gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ras_dit.arena.metrics import better_by

Row = dict[str, Any]

YARDSTICKS = ("psnr_dense", "psnr_converged")
OURS = {
    17.0: ("preset quality", "regions midway, T 17, order 2"),
    11.5: ("preset regions", "regions midway, T 11.5, order 2"),
    8.75: ("preset regions_fast", "preset regions_fast"),
    7.0: ("preset regions_faster", "preset regions_faster"),
    6.0: ("regions midway, T 6, order 1", "regions midway, T 6, order 1"),
}
"""Ours by budget, on each yardstick. The plans were found on other pictures than the arena's; which options stay in the
presets was judged by rows of the arena, too."""
PRESETS_ALONE = {
    17.0: ("preset quality", "preset quality"),
    11.5: ("preset regions", "preset regions"),
    8.75: OURS[8.75],
    7.0: OURS[7.0],
}
"""The same with presets on both yardsticks; at T = 6 there is none."""


AS_LONG = 1.15
"""A step cache that takes up to so many times our time, or our FLOPs so many times, counts as equally fast: the clock
is not better than that, and the doubt is theirs."""


def _is_as_cheap(row: Row, token_steps: float) -> bool:
    return token_steps - 1.5 < row["token_steps"] <= math.ceil(token_steps) + 0.5


def _as_cheap(group: str, is_wanted: Callable[[Row], bool] = lambda row: True) -> Callable[..., list[Row]]:
    """Rows of a group that take about as many token-steps as ours."""

    def find(rows: list[Row], ours: Row, token_steps: float) -> list[Row]:
        found = [row for row in rows if row["group"] == group and is_wanted(row)]
        return [row for row in found if _is_as_cheap(row, token_steps)]

    return find


def _is_euler(row: Row) -> bool:
    return bool(row["method"]["solver"].startswith("euler"))


def _is_second_order(row: Row) -> bool:
    return not _is_euler(row) and not row["method"].get("visited")  # those visit the dense steps of a plan of ours


def _as_fast(rows: list[Row], ours: Row, token_steps: float) -> list[Row]:
    """Step caches that take about as long as ours, or as many FLOPs, or less; if there are none, the fastest one."""
    caches = [row for row in rows if row["group"] == "cache"]
    found = [row for row in caches if any(row[of] <= AS_LONG * ours[of] for of in ("time_share", "flops_share"))]
    return found or sorted(caches, key=lambda row: row["time_share"])[:1]


AGAINST: dict[str, Callable[..., list[Row]]] = {
    "the authors' settings": _as_cheap("reference"),
    "Euler": _as_cheap("dense", _is_euler),
    "second-order solvers": _as_cheap("dense", _is_second_order),
    "random or oldest tokens": _as_cheap("baseline"),
    "step caches that cost as much": _as_fast,
}
"""What ours has to beat. Of each kind the best one is taken, so that the comparison favours the others."""


def goals(rows: list[Row], every: Mapping[float, tuple[str, str]] = OURS) -> list[dict[str, Any]]:
    """For every budget, yardstick and kind: the best of that kind, and how much nearer ours is, picture by picture.

    Args:
        rows: of an arena, with ``per_picture`` where they are compared; methods that are missing are left out.
        every: ours by budget, on each yardstick.

    Returns:
        ``token_steps``, ``yardstick``, ``ours``, ``kind``, ``other``, both times as shares of the dense run's, and the
        ``difference`` in dB with its 95 % bootstrap interval.

    Raises:
        ValueError: a row that is compared does not hold the values of its pictures.
    """
    by_name = {row["name"]: row for row in rows}
    found = []
    for token_steps, names in every.items():
        for yardstick, name in zip(YARDSTICKS, names, strict=True):
            ours = by_name.get(name)
            for kind, rivals in AGAINST.items():
                others = [] if ours is None else rivals(rows, ours, token_steps)
                if ours is None or not others:
                    continue
                other = max(others, key=lambda row: row["metrics"][yardstick][0])
                if without := [row["name"] for row in (ours, other) if yardstick not in row.get("per_picture", {})]:
                    raise ValueError(f"goals: got no values per picture of {', '.join(without)}; paint them --again.")
                difference = better_by(ours["per_picture"][yardstick], other["per_picture"][yardstick])
                found.append(
                    {
                        "token_steps": token_steps,
                        "yardstick": yardstick,
                        "ours": name,
                        "kind": kind,
                        "other": other["name"],
                        "times": [ours["time_share"], other["time_share"]],
                        "difference": [round(value, 3) for value in difference],
                    }
                )
    return found


def goals_table(found: list[dict[str, Any]]) -> str:
    """Markdown, one table per yardstick: kinds by budgets."""
    lines = []
    titles = {"psnr_dense": "dense picture of 28 Euler steps", "psnr_converged": "converged picture"}
    for yardstick in YARDSTICKS:
        of_it = [one for one in found if one["yardstick"] == yardstick]
        budgets = sorted({one["token_steps"] for one in of_it}, reverse=True)
        lines += [
            f"| nearer to the {titles[yardstick]} by, in dB | " + " | ".join(f"T = {b:g}" for b in budgets) + " |",
            "| --- " * (1 + len(budgets)) + "|",
            "| ours | " + " | ".join(_first(of_it, budget)["ours"] for budget in budgets) + " |",
        ]
        for kind in AGAINST:
            cells = [
                _cell(next((one for one in of_it if (one["token_steps"], one["kind"]) == (budget, kind)), None))
                for budget in budgets
            ]
            lines.append(f"| over {kind} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def digest_table(found: list[dict[str, Any]]) -> str:
    """Markdown, one short table: kinds by budgets, in every cell how much nearer ours is on either yardstick."""
    budgets = sorted({one["token_steps"] for one in found}, reverse=True)
    lines = [
        "| nearer by, in dB, than | " + " | ".join(f"T = {budget:g}" for budget in budgets) + " |",
        "| --- " * (1 + len(budgets)) + "|",
    ]
    for kind in AGAINST:
        cells = []
        for budget in budgets:
            at = {one["yardstick"]: one for one in found if (one["token_steps"], one["kind"]) == (budget, kind)}
            cells.append(" / ".join(_margin(at[yardstick]) for yardstick in YARDSTICKS if yardstick in at))
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _margin(one: dict[str, Any]) -> str:
    """A difference, bold where its interval is clear of 0."""
    mean, low, _ = one["difference"]
    is_ahead = "**" if low > 0 else ""
    text = f"{mean:+.1f}"
    return f"{is_ahead}{'0.0' if text in ('+0.0', '-0.0') else text}{is_ahead}"


def _first(found: list[dict[str, Any]], budget: float) -> dict[str, Any]:
    return next(one for one in found if one["token_steps"] == budget)


def _cell(one: dict[str, Any] | None) -> str:
    if one is None:
        return ""
    _, low, high = one["difference"]
    times = "; time {:.2f}, ours {:.2f}".format(*reversed(one["times"])) if "cache" in one["kind"] else ""
    return f"{_margin(one)} ({low:+.1f} to {high:+.1f})<br>{one['other']}{times}"
