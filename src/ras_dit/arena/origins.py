"""What pictures were painted with, and what to know of a table whose rows were not painted alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from ras_dit.machine import machine_name
from ras_dit.versions import versions

NUM_NAMED = 3
"""Rows that a note names before it counts the others."""


def painted_with(device: torch.device) -> dict[str, Any]:
    """Versions and machine, as the records of calls hold them."""
    return {"versions": versions(), "machine": _machine(device)}


def _machine(device: torch.device) -> str:
    name = machine_name(device)
    if device.type == "cuda":
        return name
    count = torch.get_num_threads()
    return f"{name}, {count} thread{'s' if count != 1 else ''}"


def origins(runs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the calls of these records were painted with, each once; None is what an earlier version did not keep."""
    found: list[dict[str, Any]] = []
    for run in runs:
        origin = {"versions": run.get("versions"), "machine": run.get("machine")}
        if origin not in found:
            found.append(origin)
    return found


def described(found: Mapping[str, str] | None) -> str:
    """Versions in words; None are those that were not kept."""
    if found is None:
        return "versions that were not kept"
    return ", ".join(f"{name.replace('_', '-')} {number}" for name, number in found.items())


def mixed(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Notes on rows of one table that were painted with different versions, or on different machines.

    Args:
        rows: of a result, with ``name`` and ``painted_with``.
    """
    by_versions: dict[str, list[str]] = {}
    by_machine: dict[str, list[str]] = {}
    for row in rows:
        for origin in row["painted_with"]:
            by_versions.setdefault(described(origin["versions"]), []).append(row["name"])
            if origin["machine"] is not None:
                by_machine.setdefault(origin["machine"], []).append(row["name"])
    notes = []
    for what, found in (("with different versions", by_versions), ("on different machines", by_machine)):
        if len(found) > 1:
            sides = "; ".join(f"{_named(names)}: {words}" for words, names in found.items())
            notes.append(f"Rows were painted {what}. {sides}.")
    return notes


def _named(names: Sequence[str]) -> str:
    once = list(dict.fromkeys(names))
    others = len(once) - NUM_NAMED
    return ", ".join(once[:NUM_NAMED]) + (f" and {others} more" if others > 0 else "")
