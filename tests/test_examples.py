"""The examples run, and do what they say."""

from __future__ import annotations

import functools
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from ras_dit.arena import Arena

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "quickstart.py"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense.png", "ras.png", "where.png"]
    assert "RAS: 28 evaluations" in capsys.readouterr().out


def test_a_score_that_is_changed_is_painted_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ras_dit.arena.Arena", functools.partial(Arena, steps=10, converged_steps=4))
    source = (EXAMPLES / "own_score.py").read_text(encoding="utf-8")
    folders = []
    for number, text in enumerate((source, source.replace(".norm(dim=-1)", ".abs().amax(dim=-1)"))):
        script = tmp_path / f"score_{number}.py"
        script.write_text(text, encoding="utf-8")
        monkeypatch.setattr(sys, "argv", ["own_score", "--pictures", "1", "--folder", str(tmp_path / "arena")])
        found: dict[str, Any] = runpy.run_path(str(script))
        found["main"]()
        out = capsys.readouterr().out
        assert "| preset regions |" in out
        assert "| distance to go " in out
        folders.append({path.name for path in (tmp_path / "arena").iterdir() if path.is_dir()})
    assert len(folders[1] - folders[0]) == 1
    assert "distance-to-go" in next(iter(folders[1] - folders[0]))
