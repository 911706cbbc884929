"""Writes docs/api.md: everything public, from its signature and docstring, and every option with its default."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any

import ras_dit
from ras_dit.cli.options import flag_of
from ras_dit.config import RASConfig

CALLS = ("enable", "accelerate", "disable", "plan_for", "build_plan", "calibrate", "find_plan", "load_embedded")
SECTION = re.compile(r"^(Args|Returns|Raises|Warns|Attributes|Yields|Source):\s*(.*)$")
ENTRY = re.compile(r"^    (\*{0,2}\w+): (.*)$")
BEGIN = """# Everything public

Written by `make readme` from the docstrings. `import ras_dit` gives all of it; what is not here may change without a
word.
[The README](../README.md) says how to use it, [architecture.md](architecture.md) how it works inside.
"""


def api_page() -> str:
    """The page, as Markdown."""
    lines = [BEGIN, "## Functions", ""]
    for name in CALLS:
        lines += [*_described(f"ras_dit.{name}", getattr(ras_dit, name)), ""]
    lines += ["## Options", "", "Fields of `ras_dit.RASConfig`, in the order of weight.", "", *_options(), ""]
    lines += ["## Classes", ""]
    for name in sorted(set(ras_dit.__all__) - set(CALLS) - {"PRESETS"}):
        kind = getattr(ras_dit, name)
        lines += [f"### `{name}`", "", *_docstring(kind), ""]
        for member, value in _members(kind):
            lines += [*_described(member, value, level=4), ""]
    return "\n".join(lines).rstrip() + "\n"


def _options() -> list[str]:
    lines = ["| option | default | on the command line | meaning |", "| --- | --- | --- | --- |"]
    for field in dataclasses.fields(RASConfig):
        meaning = field.metadata["help"].replace("|", "\\|")
        lines.append(f"| `{field.name}` | `{field.default!r}` | `{flag_of(field.name)}` | {meaning} |")
    return lines


def _members(kind: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties of a class of ours, in the order of the source; fields are among its attributes."""
    for name, value in vars(kind).items():
        described = value.fget if isinstance(value, property) else inspect.unwrap(getattr(kind, name))
        if not name.startswith("_") and inspect.isfunction(described) and inspect.getdoc(described):
            yield name, value


def _described(name: str, value: Any, level: int = 3) -> list[str]:
    """A heading, the signature and the docstring of a function, a method or a property."""
    if isinstance(value, property):
        return [f"{'#' * level} `{name}`", "", *_docstring(value.fget)]
    function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
    parameters = list(inspect.signature(function).parameters.values())
    if level > 3 and not isinstance(value, staticmethod):
        parameters = parameters[1:]
    returns = inspect.signature(function).return_annotation
    shown = str(inspect.Signature(parameters))
    if returns not in (inspect.Signature.empty, None, "None"):
        shown += f" -> {returns if isinstance(returns, str) else returns.__name__}"
    return [
        f"{'#' * level} `{name}`",
        "",
        "```python",
        f"{name}{shown}".replace("'", ""),
        "```",
        "",
        *_docstring(value),
    ]


def _docstring(value: Any) -> list[str]:
    """Its paragraphs, and its sections as lists."""
    lines: list[str] = []
    for line in (inspect.getdoc(value) or "").splitlines():
        line = line.replace("``", "`")
        if section := SECTION.match(line):
            lines += [f"**{section[1]}:** {section[2]}".rstrip(), ""]
        elif entry := ENTRY.match(line):
            lines.append(f"- `{entry[1]}`: {entry[2]}")
        elif line.startswith("        ") and lines and lines[-1].startswith("- "):
            lines[-1] += " " + line.strip()
        else:
            lines.append(line.strip())
    return lines
