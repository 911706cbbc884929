"""Tiny twins of the speed benchmark's cases, and rows of results, for its tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ras_dit.bench import CASES, Benchmark, Results, Settings
from ras_dit.bench.cases import Case
from ras_dit.bench.run import silent

ONE_PER_ARCHITECTURE = {
    case.dimensions.architecture: name for name, case in reversed(CASES.items()) if case.dimensions is not None
}
QUICK = Settings(num_steps=8, repeats=1, ratios=(1.0, 0.25))
MACHINE = {"code": "1", "device": "cpu"}


def tiny(name: str) -> tuple[Case, Any, dict[str, Any]]:
    case = CASES[name].tiny()
    pipe = case.make("cpu")
    return case, pipe, case.call(pipe, "cpu", 8)


def benchmark(settings: Settings = QUICK, path: Path | None = None, said: list[str] | None = None) -> Benchmark:
    return Benchmark(settings, Results(path, MACHINE), silent, (said if said is not None else []).append)


def sized_row(size: str, speedup: float = 2.0, seconds: float = 1.0) -> dict[str, Any]:
    """A size of a mode: seconds of a dense step, and the speed-up over that."""
    ratios = [{"ratio": 0.25, "speedup_same_mode": speedup}]
    return {"size": size, "num_tokens": int(size.split("x")[0]), "dense_step": seconds, "ratios": ratios}


def dense_row(mode: str, seconds: float = 1.0) -> dict[str, Any]:
    return {"mode": mode, "name": "dense", "median": seconds, "speedup_same_mode": 1.0}
