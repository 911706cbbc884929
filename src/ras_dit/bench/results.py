"""Results of a benchmark: one JSON, written whole after every part, that a later run goes on with.

A case has ``title``, ``device``, ``dtype``, ``size``, ``guidance``, ``source``, ``dense_best`` and ``rows``. A row has
``name``, ``mode``, ``seconds`` (every loop), ``median``, ``step_seconds``, ``speedup`` (over the best dense loop of
all modes that ran) and ``speedup_same_mode``; rows of a config have ``config``, ``limit`` (by FLOPs),
``share_of_limit``, ``token_steps``, ``dense_step``, ``region_step``, ``step_kinds``, ``num_active``, ``num_tokens``,
and where it has region steps ``memory`` and ``overhead``; the dense row and the leanest have ``profile``. ``crossover``
has, by mode, ``rows`` of `ras_dit.bench.crossover.size_row` from the smallest picture on, what they make of
``gains_from``, and ``left_out`` (size -> reason). Times are in seconds unless the name says otherwise.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SCHEMA = 3
EARLIER = range(1, SCHEMA)
DENSE = "dense"
CROSSOVER = "crossover"


def part_of(mode: str, size: object = None) -> str:
    """The name of what is measured, kept and resumed as one: whole loops of a mode, or one size of its crossover."""
    return mode if size is None else f"{CROSSOVER} {mode} {size}"


def mode_and_size(part: str) -> tuple[str, str | None]:
    """Of a part; no size where it is whole loops."""
    if not part.startswith(f"{CROSSOVER} "):
        return part, None
    _, mode, size = part.split(" ")
    return mode, size


def code_hash() -> str:
    """Twelve digits that change with any source file of the package: figures of other code are measured anew."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


UNITS: tuple[str, ...] = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")
"""Units for matrix products, as Linux names them, the best first."""


def processor() -> str:
    """What the processor calls itself, with the widest of its units for matrix products that PyTorch makes use of."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    if not names:
        return platform.processor() or platform.machine()
    known = {word for line in lines if line.startswith("flags") for word in line.split()}
    units = [unit for unit in UNITS if unit in known]
    units = [unit for unit in units if unit.endswith("bf16")] or units[:1]
    return names[0] + (f" ({', '.join(units)})" if units else "")


def environment(device: str) -> dict[str, Any]:
    """Code, hardware and versions."""
    import torch

    from ras_dit.versions import versions

    is_cuda = device.startswith("cuda")
    return {
        "code": code_hash(),
        "device": torch.cuda.get_device_name(torch.device(device)) if is_cuda else device,
        "processor": None if is_cuda else processor(),  # a GPU's results are resumed on any host
        "threads": None if is_cuda else torch.get_num_threads(),
        "python": platform.python_version(),
        **versions(),
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
        """Whether a part was measured already, by the same code on the same machine with the same options. What was
        left out for want of memory is tried again."""
        found, (mode, size) = self.cases.get(case, {}), mode_and_size(part)
        if size in found.get("crossover", {}).get(mode, {}).get("left_out", {}):
            return False
        return bool(found.get("finished", {}).get(part) == self._claim(options))

    def _claim(self, options: Mapping[str, Any]) -> dict[str, Any]:
        claim: dict[str, Any] = json.loads(json.dumps({**self.environment, **options}))
        return claim

    def keep(self, case: str, part: str, options: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Take in a part and write the file.

        Args:
            case: name.
            part: see `part_of`.
            options: of the measurement.
            result: ``about`` (facts of the case), and either ``rows`` and ``checks`` of a mode; or ``row`` of a size,
                or why it was ``left_out``; or why the part was ``refused``.
        """
        found = self.cases.setdefault(case, {"rows": [], "checks": {}, "crossover": {}, "refused": {}, "finished": {}})
        for other in _others(found, part, self._claim(options)):
            _take_out(found, other)
        _take_out(found, part)
        found.update(result.get("about", {}))
        mode, size = mode_and_size(part)
        if "refused" in result:
            found["refused"][part] = result["refused"]
        elif size is None:
            found["rows"] += result["rows"]
            found["checks"][mode] = result.get("checks", [])
        else:
            crossed = found["crossover"].setdefault(mode, {"rows": [], "gains_from": {}, "left_out": {}})
            if "left_out" in result:
                crossed["left_out"][size] = result["left_out"]
            else:
                crossed["rows"] = sorted([*crossed["rows"], result["row"]], key=lambda row: row["num_tokens"])
                crossed["gains_from"] = gains_from(crossed["rows"])
        found["finished"][part] = self._claim(options)
        compare(found)
        self.write()

    def write(self) -> None:
        """Put the file in place, whole."""
        from ras_dit.files import save_text

        if self.path is not None:
            whole = {"schema": SCHEMA, "environment": self.environment, "cases": self.cases}
            save_text(json.dumps(whole, indent=1) + "\n", self.path)


def _others(case: Mapping[str, Any], part: str, claim: Mapping[str, Any]) -> list[str]:
    """What other code, another machine or other options measured: it would be compared with what is new."""
    is_loops = mode_and_size(part)[1] is None
    return [
        other
        for other, theirs in case["finished"].items()
        if (mode_and_size(other)[1] is None) == is_loops and _differ(claim, theirs)
    ]


def _differ(claim: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    has_backends = bool(claim.get("backend") and other.get("backend"))  # the eager mode has none
    names = {*claim, *other} - ({"backend"} if not has_backends else set())
    return any(claim.get(name) != other.get(name) for name in names)


def _take_out(case: dict[str, Any], part: str) -> None:
    """Forget a part."""
    case["finished"].pop(part, None)
    case["refused"].pop(part, None)
    mode, size = mode_and_size(part)
    if size is None:
        case["rows"] = [row for row in case["rows"] if row["mode"] != mode]
        case["checks"].pop(mode, None)
    elif mode in case["crossover"]:
        crossed = case["crossover"][mode]
        crossed["left_out"].pop(size, None)
        crossed["rows"] = [row for row in crossed["rows"] if row["size"] != size]
        crossed["gains_from"] = gains_from(crossed["rows"])
        if not (crossed["rows"] or crossed["left_out"]):
            del case["crossover"][mode]


GAIN = 1.05
"""A loop that is not faster by this factor is counted as no gain: repetitions differ by a few per cent."""


def gains_from(rows: Sequence[Mapping[str, Any]]) -> dict[str, str | None]:
    """Ratio -> the smallest of the measured sizes from which on every larger one gains; None if none does."""
    found: dict[str, str | None] = {}
    ordered = sorted(rows, key=lambda row: row["num_tokens"])
    for place, one in enumerate(ordered[0]["ratios"] if ordered else []):
        found[f"{one['ratio']:g}"] = None
        for row in reversed(ordered):
            if row["ratios"][place]["speedup"] < GAIN:
                break
            found[f"{one['ratio']:g}"] = row["size"]
    return found


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
    if isinstance(found, dict) and found.get("schema") in EARLIER:
        raise ValueError(f"--output: {path} holds results of an earlier version; remove it or give another file.")
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or "cases" not in found:
        raise ValueError(f"--output: {path} holds something else than results of this benchmark; give another file.")
    return found
