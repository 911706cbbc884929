"""The speed benchmark: dense and RAS loops side by side, beside the limit that the FLOPs set.

`registry` has the models by their dimensions, as `cases` (`architectures` builds and calls them, with `weights` drawn
at random), `modes` compiles, `checks` says whether figures may be reported at all, `loops` runs and times one loop,
`measure` several in turns, `memory` their peaks, `inside` gets at what RAS adds (`overhead` times it, `profiling` sees
it among all operations), `crossover` looks for the picture sizes that gain, `results` keeps all of it in one JSON,
`settings` says what to measure, `run` goes through cases and modes, `report` shows.
"""

from __future__ import annotations

from ras_dit.bench.cases import DTYPES, Case
from ras_dit.bench.checks import RefusedError
from ras_dit.bench.registry import CASES, case_named, chosen_cases
from ras_dit.bench.results import Results, environment
from ras_dit.bench.run import Benchmark
from ras_dit.bench.settings import Settings

__all__ = [
    "CASES",
    "DTYPES",
    "Benchmark",
    "Case",
    "RefusedError",
    "Results",
    "Settings",
    "case_named",
    "chosen_cases",
    "environment",
]
