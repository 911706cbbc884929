"""Results of a benchmark: one JSON, written whole after every part, that a later run goes on with.

A case has ``title``, ``device``, ``dtype``, ``size``, ``guidance``, ``source``, ``dense_best`` and ``rows``. A row has
``name``, ``mode``, ``seconds`` (every loop), ``median``, ``step_seconds``, ``speedup`` (over the best dense loop of
all modes that ran) and ``speedup_same_mode``; rows of a config have ``config``, ``limit`` (by FLOPs),
``share_of_limit``, ``token_steps``, ``dense_step``, ``region_step``, ``step_kinds``, ``num_active``, ``num_tokens``,
and where it has region steps ``memory`` and ``overhead``; the dense row and the leanest have ``profile``. ``crossover``
has, by mode, the rows of `ras_dit.bench.crossover.size_row`. Times are in seconds unless the name says otherwise.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCHEMA = 2
DENSE = "dense"
CROSSOVER = "crossover "
"""Begins the name of a part that measures picture sizes; the mode follows."""


def code_hash() -> str:
    """Twelve digits that change with any source file of the package: figures of other code are measured anew."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def environment(device: str) -> dict[str, Any]:
    """Code, hardware and versions."""
    import platform
    from importlib.metadata import version

    import torch

    is_cuda = device.startswith("cuda")
    return {
        "code": code_hash(),
        "device": torch.cuda.get_device_name(torch.device(device)) if is_cuda else device,
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "diffusers": version("diffusers"),
    }


class Results:
    """The results file.

    Args:
        path: JSON; None keeps results in memory only.
        environment: what measurements depend on besides their own options.
    """

    def __init__(self, path: Path | None, environment: Mapping[str, Any]) -> None:
        self.path, self.environment = path, dict(environment)
        self.cases: dict[str, dict[str, Any]] = {}
        if path is not None and path.is_file():
            self.cases = _read(path)["cases"]

    def is_finished(self, case: str, part: str, options: Mapping[str, Any]) -> bool:
        """Whether a part was measured already, by the same code on the same machine with the same options."""
        return bool(self.cases.get(case, {}).get("finished", {}).get(part) == self._claim(options))

    def _claim(self, options: Mapping[str, Any]) -> dict[str, Any]:
        claim: dict[str, Any] = json.loads(json.dumps({**self.environment, **options}))
        return claim

    def keep(self, case: str, part: str, options: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Take in a part and write the file.

        Args:
            case: name.
            part: such as ``eager``, a mode, or ``crossover eager``.
            options: of the measurement.
            result: ``about`` (facts of the case), and either ``rows`` of a mode, ``crossover``, or ``refused``.
        """
        found = self.cases.setdefault(case, {"rows": [], "checks": {}, "crossover": {}, "refused": {}, "finished": {}})
        _drop_others(found, part, self._claim(options))
        found.update(result.get("about", {}))
        mode = part.removeprefix(CROSSOVER)
        found["refused"].pop(part, None)
        if part != mode:
            found["crossover"].pop(mode, None)
            if "crossover" in result:
                found["crossover"][mode] = result["crossover"]
        else:
            found["rows"] = [row for row in found["rows"] if row["mode"] != mode] + list(result.get("rows", ()))
            found["checks"][mode] = result.get("checks", [])
        if "refused" in result:
            found["refused"][part] = result["refused"]
        found["finished"][part] = self._claim(options)
        compare(found)
        self.write()

    def write(self) -> None:
        """Put the file in place, whole."""
        from ras_dit.files import save_text

        if self.path is not None:
            whole = {"schema": SCHEMA, "environment": self.environment, "cases": self.cases}
            save_text(json.dumps(whole, indent=1) + "\n", self.path)


def _drop_others(case: dict[str, Any], part: str, claim: Mapping[str, Any]) -> None:
    """Take out what other code, another machine or other options measured: it would be compared with what is new."""
    is_crossover = part.startswith(CROSSOVER)
    shared = {name: value for name, value in claim.items() if name != "backend"}  # which compiled modes alone have
    for other, theirs in list(case["finished"].items()):
        is_alike = {name: value for name, value in theirs.items() if name != "backend"} == shared
        if other.startswith(CROSSOVER) != is_crossover or is_alike:
            continue
        del case["finished"][other]
        case["refused"].pop(other, None)
        if is_crossover:
            case["crossover"].pop(other.removeprefix(CROSSOVER), None)
        else:
            case["rows"] = [row for row in case["rows"] if row["mode"] != other]
            case["checks"].pop(other, None)


def compare(case: dict[str, Any]) -> None:
    """Fill in what needs all modes: the best dense loop, and every speed-up over it."""
    dense = {row["mode"]: row["median"] for row in case["rows"] if row["name"] == DENSE}
    if not dense:
        case.pop("dense_best", None)
        return
    best = min(dense, key=lambda mode: dense[mode])
    case["dense_best"] = {"mode": best, "median": dense[best]}
    for row in case["rows"]:
        row["speedup"] = dense[best] / row["median"]
        if "limit" in row:
            row["share_of_limit"] = row["speedup"] / row["limit"]


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--output: {path} is no JSON ({error}); give another file.") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or "cases" not in found:
        raise ValueError(f"--output: {path} holds something else than results of this benchmark; give another file.")
    return found
