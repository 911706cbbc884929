"""Where, when and with what a measurement was made; results are JSON files, written whole or not at all."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import ras_dit
from ras_dit.machine import processor
from ras_dit.presets import PRESETS

RESULTS = Path(__file__).parent / "results"
SCHEMA = 1


def environment(device: str = "cpu") -> dict[str, Any]:
    """Commit, date, hardware and versions; the GPU is that of the device that was measured."""
    is_gpu = device.startswith("cuda")
    return {
        "schema": SCHEMA,
        "commit": revision(RESULTS.parent.parent),
        "date": datetime.date.today().isoformat(),
        "hardware": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name(torch.device(device)) if is_gpu else None,
        },
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),  # with its build, which the package's metadata may lack
            **{name: version(name) for name in ("diffusers", "transformers")},
            **({"cudnn": str(torch.backends.cudnn.version())} if is_gpu else {}),
            "ras-dit": ras_dit.__version__,
        },
    }


def write(name: str, result: dict[str, Any]) -> Path:
    """Write ``results/<name>.json`` atomically, lists of numbers on one line each."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    temporary = path.with_suffix(".part")
    temporary.write_text(on_one_line(json.dumps(result, indent=1)) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return path


def on_one_line(text: str) -> str:
    """JSON with every list of numbers on a line of its own."""
    return re.sub(r"\[\n[\s\d.,eE+-]+\]", lambda found: "[" + " ".join(found[0][1:-1].split()) + "]", text)


def read(name: str) -> dict[str, Any]:
    """A result, with methods by their names of today; rows of presets that had another plan when they were measured say
    so in their names."""
    text = (RESULTS / f"{name}.json").read_text(encoding="utf-8")
    for before, today in RENAMED.items():
        text = text.replace(f'"{before}', f'"{today}')
    result: dict[str, Any] = json.loads(text)
    names = set()
    for row in result.get("rows", ()):
        config = row.get("config") or (row.get("method") or {}).get("config")
        if config is not None:
            row["name"] = _with_age(row["name"], config)
        names.add(row.get("name"))
    for pair in (*result.get("paired", ()), *result.get("goals", ())):
        for side in ("ours", "other"):
            pair[side] = next((pair[side] + age for age in FORMER if pair[side] + age in names), pair[side])
    return result


def read_all(pattern: str) -> dict[str, dict[str, Any]]:
    """Results by their names, in order; ``*`` stands for anything in the pattern."""
    return {path.stem: read(path.stem) for path in sorted(RESULTS.glob(f"{pattern}.json"))}


FORMER = (", former plan", ", former forecast")
RENAMED = {"RAS, T ": "regions in every step, T "}
"""What methods were called in results of before, and are called today (beginnings of names)."""


def _with_age(name: str, config: Mapping[str, Any]) -> str:
    preset = PRESETS.get(name.removeprefix("preset ").split(",")[0])  # "regions, no K/V forecast" is one of it
    if preset is None:
        return name
    if preset.step_ratios != tuple(config["step_ratios"]):
        return name + FORMER[0]
    kept = ("forecast_damping", "forecast_below")
    is_same = all(config.get(option, getattr(preset, option)) == getattr(preset, option) for option in kept)
    return name if is_same else name + FORMER[1]


def machine(result: dict[str, Any]) -> str:
    """What a result was measured on, and with how many threads."""
    hardware = result["hardware"]
    if hardware["gpu"] is not None:
        return str(hardware["gpu"])
    return f"{hardware['processor']}, {hardware['threads']} thread" + ("s" if hardware["threads"] != 1 else "")


def origin(result: dict[str, Any]) -> str:
    """Where a result comes from, as tables say it. (Rows that were made at other commits have theirs in the JSON.)"""
    versions = result["versions"]
    software = f"torch {versions['torch']}, diffusers {versions['diffusers']}"
    others = sorted({row.get("commit", result["commit"]) for row in result.get("rows", [])} - {result["commit"]})
    rows = f"; some rows measured at commits {', '.join(others)}" if others else ""
    return f"{machine(result)}; {software}; commit {result['commit']}, {result['date']}{rows}"


def revision(root: Path) -> str:
    """The commit of a working tree, with ``+changes`` if something under its ``src`` is not in it; where there is no
    git, what the variable RAS_COMMIT says."""
    if shutil.which("git") is None or not (root / ".git").exists():
        return os.environ.get("RAS_COMMIT", "unknown")
    has_changes = _git(root, "status", "--porcelain", "--", "src")
    return _git(root, "rev-parse", "--short", "HEAD") + ("+changes" if has_changes else "")


def _git(root: Path, *arguments: str) -> str:
    run = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=root, check=False)
    return run.stdout.strip()
