"""Results of a benchmark: one JSON, written whole after every part, that a later run goes on with.

A case has ``title``, ``device``, ``dtype``, ``size``, ``guidance``, ``source``, ``dense_best`` and ``rows``. A row has
``name``, ``mode``, ``seconds`` (every loop), ``median``, ``step_seconds``, ``speedup`` (over the best dense loop of
all modes that ran) and ``speedup_same_mode``; rows of a config have ``config``, ``limit`` (by FLOPs),
``share_of_limit``, ``token_steps``, ``dense_step``, ``region_step``, ``step_kinds``, ``num_active``, ``num_tokens``,
and where it has region steps ``memory`` and ``overhead``; the dense row and the leanest have ``profile``. ``crossover``
has, by mode, ``rows`` of `ras_dit.bench.crossover.size_row` from the smallest picture on, what they make of
``gains_from``, ``left_out`` (size -> reason), and as ``about`` the facts that these were measured with: those of the
case itself are of its loops, wherever it has some. There, too, ``speedup`` is over the best dense step that any mode
has at that size. Times are in seconds unless the name says otherwise.

``refused`` has the reasons of parts that gave no figures. For resuming, ``finished`` has what the figures of a part
depend on, and ``tried`` the same of parts without, with whether that is final: memory that ran out is not. Figures of
other code or options stay until new ones take their place.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ras_dit.files import alone_with, save_text
from ras_dit.machine import machine_name

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


def environment(device: str) -> dict[str, Any]:
    """Code, hardware and versions."""
    import torch

    from ras_dit.versions import versions

    is_cuda, name = device.startswith("cuda"), machine_name(torch.device(device))
    return {
        "code": code_hash(),
        "device": name if is_cuda else device,
        "processor": None if is_cuda else name,  # a GPU's results are resumed on any host
        "threads": None if is_cuda else torch.get_num_threads(),
        "python": platform.python_version(),
        **versions(),
    }


class Results:
    """The results file.

    Args:
        path: JSON; None keeps results in memory only.
        environment: what measurements depend on besides their own options.

    Attributes:
        is_written: something was added to the file.
    """

    def __init__(self, path: Path | None, environment: Mapping[str, Any]) -> None:
        self.path, self.environment = path, dict(environment)
        self.cases: dict[str, dict[str, Any]] = {}
        self.is_written = False
        if path is not None and path.is_file():
            self.cases = _read(path)["cases"]

    @classmethod
    @contextmanager
    def opened(cls, path: Path | None, environment: Mapping[str, Any]) -> Iterator[Results]:
        """Results that no other process adds to meanwhile: each would write its own over those of the other.

        Raises:
            ValueError: another one does, or the file holds something else.
        """
        with alone_with("--output", path, "benchmark") if path is not None else nullcontext():
            yield cls(path, environment)

    def is_finished(self, case: str, part: str, options: Mapping[str, Any]) -> bool:
        """Whether a part was measured already, or refused, by the same code on the same machine with the same options.
        What there was no memory for is tried again."""
        found, claim = self.cases.get(case, {}), self._claim(options)
        is_refused = found.get("tried", {}).get(part) == {"claim": claim, "is_final": True}
        return bool(is_refused or found.get("finished", {}).get(part) == claim)

    def forget_later_refusal(self, case: str, part: str, options: Mapping[str, Any]) -> None:
        """Of a part that was measured so, why other code or options gave no figures after that does not count."""
        found, claim = self.cases.get(case, {}), self._claim(options)
        tried = found.get("tried", {}).get(part)
        if tried and tried["claim"] != claim and found.get("finished", {}).get(part) == claim:
            _forget_refusal(found, part)
            self.write()

    def why_refused(self, case: str, part: str, options: Mapping[str, Any]) -> str | None:
        """The reason for which the same code on the same machine with the same options gave no figures of a part."""
        found = self.cases.get(case, {})
        is_same = found.get("tried", {}).get(part, {}).get("claim") == self._claim(options)
        reason: str | None = found["refused"].get(part) if is_same else None
        return reason

    def _claim(self, options: Mapping[str, Any]) -> dict[str, Any]:
        claim: dict[str, Any] = json.loads(json.dumps({**self.environment, **options}))
        return claim

    def keep(self, case: str, part: str, options: Mapping[str, Any], result: Mapping[str, Any]) -> list[str]:
        """Take in a part and write the file.

        Args:
            case: name.
            part: see `part_of`.
            options: of the measurement.
            result: ``about`` (facts of the case), and either ``rows`` and ``checks`` of a mode; or ``row`` of a size,
                or why it was ``left_out``; or why the part was ``refused``, and whether that ``is_final``.

        Returns:
            The parts of which older figures were dropped: what other code, another machine or other options measured
            would be compared with what is new. Where there are no new figures, none are dropped.
        """
        found, claim = self.cases.setdefault(case, {"rows": []}), self._claim(options)
        for name in ("checks", "crossover", "refused", "finished", "tried"):
            found.setdefault(name, {})
        tried = {other: one["claim"] for other, one in found["tried"].items()}
        for other in {part, *_others(part, claim, {**found["finished"], **tried})}:
            _forget_refusal(found, other)
        dropped: list[str] = []
        if "rows" in result or "row" in result:
            dropped = _take_in(found, part, claim, result)
        else:
            _leave_out(found, part, claim, result)
        compare(found)
        self.write()
        return dropped

    def write(self) -> None:
        """Put the file in place, whole."""
        if self.path is not None:
            whole = {"schema": SCHEMA, "environment": self.environment, "cases": self.cases}
            save_text(json.dumps(whole, indent=1) + "\n", self.path)
            self.is_written = True


def _take_in(case: dict[str, Any], part: str, claim: Mapping[str, Any], result: Mapping[str, Any]) -> list[str]:
    """New figures, in the place of those that they cannot be compared with.

    Returns:
        The parts of these.
    """
    older = _others(part, claim, case["finished"])
    dropped = [other for other in older if holds_figures(case, other)]
    for other in {part, *older}:
        _forget_figures(case, other)
    about = result.get("about", {})
    mode, size = mode_and_size(part)
    if size is None:
        case["rows"] += result["rows"]
        case["checks"][mode] = result.get("checks", [])
    else:
        crossed = _crossed(case, mode)
        crossed["rows"] = sorted([*crossed["rows"], result["row"]], key=lambda row: row["num_tokens"])
        crossed["about"] = about
    if size is None or not case["rows"]:
        case.update(about)
    case["finished"][part] = claim
    return dropped


def _leave_out(case: dict[str, Any], part: str, claim: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Why there are no new figures; others stay, but for those that the same code gave before."""
    if case["finished"].get(part) == claim:
        _forget_figures(case, part)
    mode, size = mode_and_size(part)
    if "refused" in result:
        case["refused"][part] = result["refused"]
    else:
        _crossed(case, mode)["left_out"][size] = result["left_out"]
    case["tried"][part] = {"claim": claim, "is_final": "refused" in result and result.get("is_final", True)}
    if not any(holds_figures(case, other) for other in case["finished"]):
        case.update(result.get("about", {}))


def _others(part: str, claim: Mapping[str, Any], claims: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Parts that other code, another machine or other options measured: they would be compared with what is new."""
    is_loops = mode_and_size(part)[1] is None
    return [
        other
        for other, theirs in claims.items()
        if (mode_and_size(other)[1] is None) == is_loops and _differ(claim, theirs)
    ]


def _differ(claim: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    has_backends = bool(claim.get("backend") and other.get("backend"))  # the eager mode has none
    names = {*claim, *other} - ({"backend"} if not has_backends else set())
    return any(claim.get(name) != other.get(name) for name in names)


def holds_figures(case: Mapping[str, Any], part: str) -> bool:
    """Whether there are figures of a part, of whatever code."""
    mode, size = mode_and_size(part)
    if size is None:
        return any(row["mode"] == mode for row in case["rows"])
    return any(row["size"] == size for row in case["crossover"].get(mode, {}).get("rows", ()))


def _crossed(case: dict[str, Any], mode: str) -> dict[str, Any]:
    """The crossover of a mode, to add to."""
    found: dict[str, Any] = case["crossover"].setdefault(mode, {"rows": [], "gains_from": {}, "left_out": {}})
    return found


def _forget_figures(case: dict[str, Any], part: str) -> None:
    case["finished"].pop(part, None)
    mode, size = mode_and_size(part)
    if size is None:
        case["rows"] = [row for row in case["rows"] if row["mode"] != mode]
        case["checks"].pop(mode, None)
    elif mode in case["crossover"]:
        crossed = case["crossover"][mode]
        crossed["rows"] = [row for row in crossed["rows"] if row["size"] != size]
        _end_empty(case, mode)


def _forget_refusal(case: dict[str, Any], part: str) -> None:
    """Forget why a part gave no figures."""
    case["refused"].pop(part, None)
    case["tried"].pop(part, None)
    mode, size = mode_and_size(part)
    if size is not None and mode in case["crossover"]:
        case["crossover"][mode]["left_out"].pop(size, None)
        _end_empty(case, mode)


def _end_empty(case: dict[str, Any], mode: str) -> None:
    """Take out the crossover of a mode of which nothing is left."""
    crossed = case["crossover"][mode]
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
    """Fill in what needs all modes: the best dense loop, and every speed-up over it; the same of every picture size."""
    _compare_sizes(case.get("crossover", {}))
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


def _compare_sizes(crossover: Mapping[str, dict[str, Any]]) -> None:
    best: dict[str, float] = {}
    for row in (row for crossed in crossover.values() for row in crossed["rows"]):
        best[row["size"]] = min(best.get(row["size"], row["dense_step"]), row["dense_step"])
    for crossed in crossover.values():
        for row in crossed["rows"]:
            for one in row["ratios"]:
                own = one.setdefault("speedup_same_mode", one.get("speedup"))  # (older results have one of both)
                one["speedup"] = own * best[row["size"]] / row["dense_step"]
        crossed["gains_from"] = gains_from(crossed["rows"])


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
