"""Results say which code made them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks import arena, record, speed
from ras_dit import PRESETS
from ras_dit.arena import Method
from ras_dit.bench import environment


def test_methods_go_by_their_names_of_today_and_presets_that_had_another_plan_say_so(tmp_path, monkeypatch):
    def row(name, ratios):
        return {"name": name, "method": {"config": {"step_ratios": ratios}}}

    today = list(PRESETS["fast"].step_ratios)
    rows = [row("preset fast", today), row("preset balanced", [1, 0.5]), row("RAS, T 6", [1, 0.5]), {"name": "dense"}]
    pairs = [{"ours": "preset balanced", "other": "preset fast"}, {"ours": "RAS, T 6", "other": "dense"}]
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    record.write("some", {"rows": rows, "paired": pairs})
    result = record.read("some")
    assert [row["name"] for row in result["rows"]] == [
        "preset fast",
        "preset balanced, former plan",
        "regions in every step, T 6",
        "dense",
    ]
    assert [(pair["ours"], pair["other"]) for pair in result["paired"]] == [
        ("preset balanced, former plan", "preset fast"),
        ("regions in every step, T 6", "dense"),
    ]
    record.write("speed", {"rows": [{"name": "fast, fitted", "config": {"step_ratios": [1, 0]}}]})
    assert record.read("speed")["rows"][0]["name"] == "fast, fitted, former plan"
    record.write("speed", {"rows": [{"name": "fast", "config": {"step_ratios": []}}]})
    assert record.read("speed")["rows"][0]["name"] == "fast, former plan"
    config = {"step_ratios": today, "forecast_damping": 0.1}
    record.write("speed", {"rows": [{"name": "fast, fitted", "config": config}]})
    assert record.read("speed")["rows"][0]["name"] == "fast, fitted, former forecast"


def test_lists_of_numbers_stand_on_a_line_of_their_own_and_nothing_else_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    row = {"name": "[1,  \n2] [1,   2]", "per_picture": [1.5, -2.0, 1e-7], "nested": [[1, 2], [3, 4]], "none": []}
    text = record.write("some", {"rows": [row]}).read_text()
    assert json.loads(text) == {"rows": [row]}
    assert "[1.5, -2.0, 1e-07]" in text


def _result(rows, **others):
    made = {"num_pictures": 2, "call": {}, "hardware": {"cores": 2}, "versions": {"torch": "2"}}
    kept = {"failures": {}, "sensitivity": {"first": "dense"}}
    rows = [{"name": name, "method": {"name": name, "steps": steps}, "time": steps} for name, steps in rows]
    return made | kept | {"rows": rows} | others


def test_rows_that_are_added_take_their_places_and_say_where_they_were_made():
    earlier = _result([("dense", 28), ("converged", 200), ("b", 6), ("gone", 5), ("c", 7)], commit="old")
    others = {"commit": "new", "hardware": {"cores": 4}, "sensitivity": None}
    added = _result([("dense", 28), ("converged", 200), ("a", 3), ("c", 8)], **others)
    result = arena.merged(earlier, added, ["a", "b", "c", "failed"])
    found = [(row["name"], row["commit"], row["time"]) for row in result["rows"]]
    assert found == [("dense", "new", 28), ("converged", "new", 200), ("a", "new", 3), ("b", "old", 6), ("c", "new", 8)]
    assert [row.get("hardware") for row in result["rows"]] == [None, None, None, {"cores": 2}, None]
    assert (result["commit"], result["sensitivity"]) == ("new", {"first": "dense"})
    later = _result([("dense", 28), ("converged", 200), ("a", 4)], commit="newer")
    again = arena.merged(result, later, ["a", "b"])
    assert [(row["name"], row["commit"]) for row in again["rows"][2:]] == [("a", "newer"), ("b", "old")]


@pytest.mark.parametrize("other", [{"num_pictures": 3}, {"call": {"guidance_scale": 2}}, {"versions": {"torch": "3"}}])
def test_rows_that_were_not_made_alike_are_not_put_side_by_side(other):
    key = next(iter(other))
    with pytest.raises(ValueError, match=f"got {key} .*run the arena without --add"):
        arena.merged(_result([("dense", 28)], commit="old"), _result([], commit="new", **other), ["a"])


@pytest.mark.parametrize(("name", "steps"), [("dense", 27), ("converged", 100), ("converged", None)])
def test_rows_that_are_compared_with_other_pictures_are_not_put_side_by_side(name, steps):
    earlier = _result([("dense", 28), ("converged", 200)], commit="old")
    references = {"dense": 28, "converged": 200} | {name: steps}
    rows = [(one, count) for one, count in references.items() if count is not None]
    with pytest.raises(ValueError, match=f"got the {name} run .*give its --steps and --converged-steps"):
        arena.merged(earlier, _result([*rows, ("a", 3)], commit="new"), ["a"])


def test_runs_of_other_lengths_are_compared_with_what_the_results_hold():
    for steps, of_converged in arena.CONVERGED.items():
        rows = {row["name"]: row["method"] for row in record.read(f"arena_embedded_{steps}_steps")["rows"]}
        assert (rows["dense"]["steps"], rows["converged"]["steps"]) == (steps, of_converged)


def test_only_methods_that_are_not_there_yet_or_have_changed_are_painted():
    same, changed, new, failed = (Method(name, "dense", 6) for name in ("same", "changed", "new", "failed"))
    before = Method("changed", "dense", 5)
    rows = [{"method": json.loads(json.dumps(method.to_dict()))} for method in (same, before)]
    earlier = {"rows": rows, "failures": {"failed": "does not run"}}
    assert arena.missing([same, changed, new, failed], earlier) == [changed, new]
    assert arena.missing([same, changed, new, failed], earlier, ["same"]) == [same, changed, new]


def test_differences_of_before_stay_where_the_values_per_picture_are_gone():
    values = {"psnr_dense": [1.0, 2.0], "psnr_converged": [3.0, 5.0]}
    more = {"psnr_dense": [2.0, 3.0], "psnr_converged": [4.0, 6.0]}
    rows = [{"name": "a", "per_picture": more}, {"name": "b", "per_picture": values}, {"name": "c"}, {"name": "d"}]
    before = [{"ours": "c", "other": "d", "psnr_dense": [9.0, 8.0, 10.0]}, {"ours": "a", "other": "b"}]
    found = arena.paired(rows, [("a", "b"), ("c", "d"), ("a", "gone")], before)
    assert found == [{"ours": "a", "other": "b", "psnr_dense": [1.0] * 3, "psnr_converged": [1.0] * 3}, before[0]]
    with pytest.raises(ValueError, match="no values per picture of c; paint it --again"):
        arena.paired(rows, [("a", "c")], [{"ours": "a", "other": "c", "psnr_dense": [0.0] * 3}])


def _git(root: Path, *arguments: str) -> None:
    name = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", *name, *arguments], cwd=root, check=True, capture_output=True)


def test_a_revision_says_whether_the_sources_are_those_of_the_commit(tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("a = 1\n")
    (tmp_path / "notes.md").write_text("first\n")
    _git(tmp_path, "init")
    _git(tmp_path, "add", "-A")
    _git(tmp_path, "commit", "-m", "first")
    clean = record.revision(tmp_path)
    assert len(clean) >= 7
    assert clean.isalnum()
    (tmp_path / "notes.md").write_text("second\n")
    assert record.revision(tmp_path) == clean
    (tmp_path / "src" / "b.py").write_text("b = 1\n")
    assert record.revision(tmp_path) == clean + "+changes"
    (tmp_path / "src" / "b.py").unlink()
    (tmp_path / "src" / "a.py").write_text("a = 2\n")
    assert record.revision(tmp_path) == clean + "+changes"


def test_results_that_hold_more_are_not_written_over(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)

    def found(modes, sizes, codes=("a",)):
        crossed = {"eager": {"rows": [{"size": size} for size in sizes]}}
        claims = {str(place): {"code": code, "device": "H200"} for place, code in enumerate(codes)}
        rows = [{"mode": mode, "name": "dense"} for mode in modes]
        return {"rows": rows, "crossover": crossed, "finished": claims}

    today = {"code": "a", "device": "H200"}
    assert speed.why_kept("speed", found(["eager"], ["64x64"]), today) is None
    record.write("speed", found(["eager", "compiled"], ["64x64"]))
    assert speed.why_kept("speed", found(["eager", "compiled"], ["64x64", "96x96"]), today) is None
    assert speed.why_kept("speed", found(["eager"], ["96x96"]), today) == (
        "the one that is there has compiled, crossover eager 64x64 too"
    )
    assert "of different code" in speed.why_kept("speed", found(["eager", "compiled"], ["64x64"], ("a", "b")), today)
    both = found(["eager", "compiled"], ["64x64"], ("a", "a"))
    assert speed.why_kept("speed", both, today) is None
    for other in ({"code": "b"}, {"device": "L4"}):  # are not published as those of today's commit and machine
        assert "of different code" in speed.why_kept("speed", both, {**today, **other})
    record.write("speed", {"rows": [{"name": "dense"}]})  # of the first form
    assert speed.why_kept("speed", found([], ["64x64"]), today) == "the one that is there has eager too"


def test_versions_name_the_build_of_pytorch(monkeypatch):
    """The metadata of wheels with CUDA do not say for which one they were built."""
    monkeypatch.setattr(torch, "__version__", "2.13.0+cu130")
    assert record.environment()["versions"]["torch"] == "2.13.0+cu130"
    assert environment("cpu")["torch"] == "2.13.0+cu130"


def test_where_a_result_comes_from():
    made = {"hardware": {"gpu": "H100"}, "versions": {"torch": "2", "diffusers": "0"}, "commit": "a", "date": "today"}
    assert record.origin(made) == "H100; torch 2, diffusers 0; commit a, today"
    rows = [{"commit": "c"}, {}, {"commit": "b"}, {"commit": "a"}]
    expected = "H100; torch 2, diffusers 0; commit a, today; some rows measured at commits b, c"
    assert record.origin({**made, "rows": rows}) == expected
