"""Results say which code made them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from benchmarks import record
from ras_dit import PRESETS


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
