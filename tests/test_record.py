"""Results say which code made them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from benchmarks import record


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
