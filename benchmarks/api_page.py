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

CALLS = (
    "enable",
    "accelerate",
    "disable",
    "handle_of",
    "plan_for",
    "build_plan",
    "calibrate",
    "find_plan",
    "load_embedded",
    "psnr",
    "ssim",
)
SECTION = re.compile(r"^(Args|Returns|Raises|Warns|Attributes|Yields|Source):\s*(.*)$")
ENTRY = re.compile(r"^    (\*{0,2}\w+): (.*)$")
BEGIN = """# Everything public

Written by `make readme` from the docstrings. `import ras_dit` gives all of it. Names of modules below it may
change from one version to the next, those that other pages show included (`ras_dit.arena`, `ras_dit.tune` ...).

[The README](../README.md) says how to use it, [architecture.md](architecture.md) how it works inside.
"""


def api_page() -> str:
    """The page, as Markdown."""
    lines = [BEGIN, "## Functions", ""]
    for name in CALLS:
        lines += [*_described(f"ras_dit.{name}", getattr(ras_dit, name)), ""]
    about = (
        "Fields of `ras_dit.RASConfig`, the most used first. `ras_dit.PRESETS` holds one config per preset, by name."
    )
    lines += ["## Options", "", about, "", *_options(), ""]
    lines += ["## Classes", ""]
    for name in sorted(set(ras_dit.__all__) - set(CALLS) - {"PRESETS"}):
        kind = getattr(ras_dit, name)
        lines += [f"### `{name}`", "", *_docstring(kind), ""]
        for member, value in _members(kind):
            lines += [*_described(member, value, level=4, owner=f"{name}."), ""]
    return "\n".join(lines).rstrip() + "\n"


def _options() -> list[str]:
    lines = ["| option | default | on the command line | meaning |", "| --- | --- | --- | --- |"]
    for field in dataclasses.fields(RASConfig):
        meaning = field.metadata["help"].replace("|", "\\|")
        lines.append(f"| `{field.name}` | `{field.default!r}` | `{flag_of(field.name)}` | {meaning} |")
    return lines


def _members(kind: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties of a class of ours, in the order of the source; fields are among its attributes.

    Raises:
        ValueError: one of them has no docstring.
    """
    for name, value in vars(kind).items():
        function = _function_of(value)
        if name.startswith("_") or function is None or not function.__module__.startswith("ras_dit"):
            continue
        if not inspect.getdoc(function):
            raise ValueError(f"docs/api.md: {kind.__name__}.{name} has no docstring; everything public has one.")
        yield name, value


def _function_of(value: Any) -> Any:
    """The function behind a method or a property; None for anything else."""
    if isinstance(value, property):
        return value.fget
    if isinstance(value, (classmethod, staticmethod)):
        return value.__func__
    return value if inspect.isfunction(value) else None


def _described(name: str, value: Any, level: int = 3, owner: str = "") -> list[str]:
    """A heading, the signature and the docstring of a function, a method or a property."""
    heading, function = f"{'#' * level} `{owner}{name}`", _function_of(value)
    if isinstance(value, property):
        return [heading, "", *_docstring(function)]
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    if owner and not isinstance(value, staticmethod):
        parameters = parameters[1:]
    kinds = inspect.Parameter
    words = [_parameter(one) for one in parameters]
    stars = [number for number, one in enumerate(parameters) if one.kind is kinds.KEYWORD_ONLY]
    if stars and not any(one.kind is kinds.VAR_POSITIONAL for one in parameters):
        words.insert(stars[0], "*")
    returns = signature.return_annotation
    is_context = hasattr(function, "__wrapped__")  # contextlib's decorator: what the block is given
    result = "" if returns in (inspect.Signature.empty, "None") else f" -> {returns}"
    if is_context:
        result = f" -> AbstractContextManager[{str(returns).removeprefix('Iterator[').removesuffix(']')}]"
    return [heading, "", "```python", f"{name}({', '.join(words)}){result}", "```", "", *_docstring(function)]


def _parameter(one: inspect.Parameter) -> str:
    """``name: type = default``, the same in every process."""
    star = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(one.kind, "")
    written = f"{star}{one.name}" + ("" if one.annotation is one.empty else f": {one.annotation}")
    if one.default is one.empty:
        return written
    default = getattr(one.default, "__name__", repr(one.default))
    return f"{written} = {'...' if default == '<lambda>' else default}"


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
