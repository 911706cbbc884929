"""Numbers of results as the tables write them."""

from __future__ import annotations

from typing import Any


def interval(row: dict[str, Any], name: str, digits: int) -> str:
    """A metric of a row with its interval; nothing where the row has none."""
    if name not in row["metrics"]:
        return ""
    mean, low, high = row["metrics"][name]
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def difference(numbers: list[float]) -> str:
    """A difference in dB with its interval."""
    mean, low, high = (round(number, 1) + 0.0 for number in numbers)  # no -0.0
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def converged_steps(result: dict[str, Any]) -> int:
    """Steps of the converged run."""
    steps: int = row_named(result, "converged")["method"]["steps"]
    return steps


def row_named(result: dict[str, Any], name: str) -> dict[str, Any]:
    """The row of a method."""
    found: dict[str, Any] = next(row for row in result["rows"] if row["name"] == name)
    return found
