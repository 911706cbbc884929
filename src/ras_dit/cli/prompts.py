"""The prompts of a file, with what their lines say of the pictures beside."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ras_dit.cli.pictures import Picture
from ras_dit.files import read_text

FIRST = ("prompt", "negative_prompt", "seed", "steps", "guidance", "true_cfg_scale")
"""Keys that messages name before the others, which come as `Picture` has them."""
HIDDEN = ("max_sequence_length",)
"""Fields of `Picture` that no line sets."""
KINDS = {name: (*get_args(hint), hint)[0] for name, hint in get_type_hints(Picture).items() if name not in HIDDEN}
"""What a picture holds under each key, but for None: ``int``, ``float``, ``str`` or ``Path``."""
PROMPT_KEYS = tuple(dict.fromkeys((*FIRST, *KINDS)))
ALLOWED: dict[type, tuple[tuple[type, ...], str]] = {
    int: ((int,), "allowed: an int."),
    float: ((int, float), "give a number."),
    str: ((str,), "give a text."),
    Path: ((str,), "give a file."),
}
"""The types of JSON's values that may stand for each kind, and what is said of others."""


def read_prompts(path: Path, keys: Sequence[str] = PROMPT_KEYS) -> list[dict[str, Any]]:
    """The prompts of a file: ``.txt`` with one a line (none of a line that begins with #), ``.jsonl`` with one object a
    line.

    Args:
        path: the file.
        keys: that an object may have; others are refused, so that none is ignored.

    Returns:
        Mappings with ``prompt`` and whichever of the other keys the file gives; an ``image``, a ``mask_image`` and a
        ``control_image`` are paths, taken from the folder of the file if they are relative.

    Raises:
        ValueError: no such file, another ending, no prompt, or a line that cannot be read.
    """
    return list(numbered_prompts(path, keys).values())


def numbered_prompts(path: Path, keys: Sequence[str] = PROMPT_KEYS) -> dict[int, dict[str, Any]]:
    """What `read_prompts` reads, by the number of its line."""
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError(f"--prompts-file: got {str(path)!r}; allowed: a .txt file (a prompt a line) or .jsonl.")
    if not path.is_file():
        raise ValueError(f"--prompts-file: got {str(path)!r}, which is no file.")
    try:
        lines = re.split(r"\r\n|\r|\n", read_text(path))  # no others: JSON has them inside of its strings
    except ValueError as error:
        raise ValueError(f"--prompts-file: {error}") from error
    numbered = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    if path.suffix == ".txt":
        prompts = {number: {"prompt": line} for number, line in numbered if not line.startswith("#")}
    else:
        prompts = {number: _read_object(path, number, line, keys) for number, line in numbered}
    if not prompts:
        raise ValueError(f"--prompts-file: {path} holds no prompt.")
    return prompts


def _read_object(path: Path, number: int, line: str, keys: Sequence[str]) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"--prompts-file: {path}, line {number}: no JSON ({error}).") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
        raise ValueError(f'--prompts-file: {path}, line {number}: give an object such as {{"prompt": "a fox"}}.')
    if unknown := sorted(set(entry) - set(keys)):
        why = " (in this command)" if set(unknown) <= set(PROMPT_KEYS) else ""
        raise ValueError(
            f"--prompts-file: {path}, line {number}: got {', '.join(unknown)}; allowed{why}: {', '.join(keys)}."
        )
    for kind, (types, wanted) in ALLOWED.items():
        for key in [key for key, held in KINDS.items() if held is kind and key in entry]:
            if type(entry[key]) not in types:
                raise ValueError(f"--prompts-file: {path}, line {number}: {key}: got {entry[key]!r}; {wanted}")
            if kind is Path:
                entry[key] = path.parent / entry[key]
    return entry
