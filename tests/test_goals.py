"""What the shortest table of the arena compares with what, and which speed results tables show."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import record
from benchmarks.goals import OURS as OURS_BY_BUDGET
from benchmarks.goals import PRESETS_ALONE, digest_table, goals, goals_table
from benchmarks.speed_tables import at_their_best, checked_results


def row(
    name: str,
    group: str,
    token_steps: float,
    psnr: list[float],
    time: float = 0.4,
    flops: float | None = None,
    **method: Any,
) -> dict[str, Any]:
    metrics = {"psnr_dense": psnr, "psnr_converged": psnr}
    return {
        "name": name,
        "group": group,
        "method": {"solver": "euler", **method},
        "token_steps": token_steps,
        "time_share": time,
        "flops_share": time if flops is None else flops,
        "metrics": {key: [sum(values) / len(values)] for key, values in metrics.items()},
        "per_picture": metrics,
    }


OURS = row("preset regions", "ras", 11.5, [40.0, 42.0, 41.0], 0.44)


def of_kind(rows: list[dict[str, Any]], kind: str) -> list[str]:
    return [one["other"] for one in goals(rows) if one["kind"] == kind and one["ours"] == "preset regions"]


def test_the_best_of_a_kind_is_taken_and_only_of_as_much_compute() -> None:
    rows = [
        OURS,
        row("Euler, 12 steps", "dense", 12, [30.0, 30.0, 30.0]),
        row("Euler, 12 even steps", "dense", 12, [31.0, 31.0, 31.0], solver="euler-even"),
        row("Euler, 14 steps", "dense", 14, [39.0, 39.0, 39.0]),
        row("Euler, 9 steps", "dense", 9, [39.0, 39.0, 39.0]),
    ]
    assert of_kind(rows, "Euler") == ["Euler, 12 even steps"]
    [found] = [one for one in goals(rows) if one["ours"] == "preset regions"]
    assert found["yardstick"] == "psnr_dense"
    assert found["token_steps"] == 11.5
    assert found["difference"][0] == pytest.approx(10.0)
    assert 9 <= found["difference"][1] <= 10 <= found["difference"][2] <= 11


def test_others_of_ours_are_compared_likewise() -> None:
    rows = [OURS, row("preset quality", "ras", 17, [50.0] * 3), row("Euler, 17 steps", "dense", 17, [45.0] * 3)]
    found = goals(rows, {17.0: ("preset quality", "preset quality")})
    assert [(one["ours"], one["yardstick"], one["other"]) for one in found] == [
        ("preset quality", yardstick, "Euler, 17 steps") for yardstick in ("psnr_dense", "psnr_converged")
    ]
    assert set(PRESETS_ALONE) == set(OURS_BY_BUDGET) - {6.0}
    assert all(name.startswith("preset ") for names in PRESETS_ALONE.values() for name in names)


def test_nothing_is_written_as_minus_nothing() -> None:
    rows = [row("preset regions", "ras", 11.5, [40.0, 40.0]), row("Euler, 12 steps", "dense", 12, [40.02, 40.01])]
    assert "| 0.0 |" in digest_table(goals(rows))


def test_of_two_sessions_of_one_case_the_one_with_the_faster_dense_loop_is_shown() -> None:
    hardware = {"processor": "A", "cores": 2, "threads": 2, "gpu": None}
    slow, fast, other = (
        {"case": "mid", "hardware": {**hardware, "processor": name}, "dense_best": {"mode": mode, "median": seconds}}
        for name, mode, seconds in (("A", "compiled", 3.5), ("A", "eager", 3.0), ("B", "eager", 9.0))
    )
    assert at_their_best([slow, fast, other]) == [fast, other]


def test_a_solver_that_visits_the_steps_of_our_plan_is_none_of_theirs() -> None:
    rows = [OURS, row("AB2 on those", "dense", 11, [38.0] * 3, solver="ab2", visited=[0, 1])]
    assert of_kind(rows, "second-order solvers") == []
    rows.append(row("UniPC 2, 12 steps", "dense", 12, [35.0] * 3, solver="unipc"))
    assert of_kind(rows, "second-order solvers") == ["UniPC 2, 12 steps"]


def test_caches_are_compared_by_time() -> None:
    slow = row("slow", "cache", 11, [44.0] * 3, 0.6)
    assert of_kind([OURS, slow], "step caches that cost as much") == ["slow"]  # none is as fast: the fastest there is
    rows = [OURS, slow, row("as fast", "cache", 13, [33.0] * 3, 0.5), row("faster", "cache", 8, [32.0] * 3, 0.3)]
    assert of_kind(rows, "step caches that cost as much") == ["as fast"]
    few_flops = row("slow, of as many FLOPs", "cache", 11, [35.0] * 3, 0.6, flops=0.5)
    assert of_kind([*rows, few_flops], "step caches that cost as much") == ["slow, of as many FLOPs"]


def test_the_table_says_who_is_ahead_and_of_caches_how_fast() -> None:
    rows = [OURS, row("as fast", "cache", 13, [44.0] * 3, 0.48)]
    table = goals_table(goals(rows))
    assert "| ours | preset regions |" in table
    assert "| -3.0 (" in table, "bold is what is ahead"
    assert "as fast; time 0.48, ours 0.44" in table
    assert "| **+8.0** (" in goals_table(goals([OURS, row("as fast", "cache", 13, [33.0] * 3, 0.48)]))


def test_the_best_rival_is_not_passed_over_for_want_of_its_values() -> None:
    best = row("Euler, 12 steps", "dense", 12, [33.0] * 3)
    del best["per_picture"]
    with pytest.raises(ValueError, match="no values per picture of Euler, 12 steps; paint them --again"):
        goals([OURS, best, row("Euler, 12 even steps", "dense", 12, [30.0] * 3)])


def test_speed_that_was_not_checked_is_in_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def dense(mode: str) -> dict[str, Any]:
        return {"mode": mode, "name": "dense", "median": 2.0}

    green, red = [{"name": "a", "is_green": True}], [{"name": "a", "is_green": True}, {"name": "b", "is_green": False}]
    ratio = {"ratio": 0.5, "speedup": 1.5, "limit": 1.6}
    sizes = [
        {"size": size, "num_tokens": 16, "dense_step": 1.0, "ratios": [dict(ratio)], "checks": checks}
        for size, checks in (("64x64", green), ("96x96", red), ("128x128", []))
    ]
    results = {
        "speed_old": {"rows": [dense("eager")]},
        "speed_red": {"rows": [dense("eager")], "checks": {"eager": red}},
        "speed_half": {"rows": [dense("eager"), dense("compiled")], "checks": {"compiled": green}},
        "speed_sizes": {"rows": [], "checks": {}, "crossover": {"eager": {"rows": sizes, "gains_from": {}}}},
    }
    monkeypatch.setattr(record, "read_all", lambda pattern: results)
    found = checked_results()
    assert list(found) == ["speed_half", "speed_sizes"]
    assert [row["mode"] for row in found["speed_half"]["rows"]] == ["compiled"]
    assert [row["size"] for row in found["speed_sizes"]["crossover"]["eager"]["rows"]] == ["64x64"]
