"""`ras-dit arena` on a tiny model: what it writes, and that it goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

Run = Callable[..., tuple[int, str, str]]


def test_an_arena_of_any_model(ras_dit: Run, model: str, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox\na cat\n")
    words = ("arena", "--model", model, "--prompts-file", str(prompts), "--suites", "presets", "--steps", "8")
    words = (*words, "--converged-steps", "9", "--height", "32", "--width", "32", "-o", str(tmp_path / "arena"))
    code, out, err = ras_dit(*words)
    assert code == 0, err
    assert "preset balanced" in out
    result = json.loads((tmp_path / "arena" / "results.json").read_text())
    assert [row["name"] for row in result["rows"]][:2] == ["dense", "converged"]
    assert len(result["rows"]) == 5
    assert "subject" not in result["rows"][0]["metrics"], "only the embedded model's prompts have known subjects"
    painted = {path: path.stat().st_mtime_ns for path in (tmp_path / "arena").rglob("0*.png")}
    assert len(painted) == 10
    code, _, err = ras_dit(*words)
    assert code == 0, err
    assert all(path.stat().st_mtime_ns == before for path, before in painted.items())
    prompts.write_text("a dog\n")
    code, _, err = ras_dit(*words)
    assert code == 2
    assert "holds an arena of other prompts" in err
