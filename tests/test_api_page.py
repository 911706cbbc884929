"""docs/api.md: everything public is on it, and it is the same in every process."""

from __future__ import annotations

import dataclasses
import inspect

import ras_dit
from benchmarks.api_page import api_page
from ras_dit import RASConfig


def test_everything_public_is_on_the_page() -> None:
    page = api_page()
    for name in set(ras_dit.__all__) - {"PRESETS"}:
        assert f"`{name}`\n" in page or f"`ras_dit.{name}`\n" in page, name
        kind = getattr(ras_dit, name)
        if not inspect.isclass(kind):
            continue
        for member, value in vars(kind).items():
            is_method = inspect.isfunction(value) or isinstance(value, (property, classmethod, staticmethod))
            if is_method and not member.startswith("_"):
                assert f"#### `{name}.{member}`\n" in page
    for field in dataclasses.fields(RASConfig):
        assert f"| `{field.name}` | `{field.default!r}` |" in page
    assert "`ras_dit.PRESETS`" in page


def test_nothing_on_the_page_changes_from_process_to_process() -> None:
    page = api_page()
    assert " at 0x" not in page
    headings = [line for line in page.splitlines() if line.startswith("#")]
    assert len(set(headings)) == len(headings)


def test_signatures_are_written_as_they_are_called() -> None:
    page = api_page()
    assert "ras_dit.disable(pipe: Any)\n" in page
    assert "accelerate(pipe: Any, config: RASConfig | str | Path | None = None, *, preset: str | None = None" in page
    assert ") -> AbstractContextManager[Handle]\n" in page
    assert "preset(name: str) -> RASConfig\n" in page
