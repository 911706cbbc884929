"""What rounding makes of a model, by its depth: the errors that the checks of `ras_dit.bench` allow, measured.

``python -m benchmarks.rounding --case sd3-medium --depth 0.5 --depth 1 --size 256`` compares, on the case's dimensions
with random weights, a region step over fresh keys with the dense one, the same over stale keys, and compiled
evaluations with eager ones. Rows are added to ``benchmarks/results/rounding.json``, each with the commit and machine
that measured it.
"""

from __future__ import annotations

import argparse
import gc
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import record
from ras_dit.bench import CASES, Case, chosen_cases
from ras_dit.bench.checks import compiled_checks, eager_probe, fresh_check, stale_error
from ras_dit.bench.modes import blocks_of, in_mode, settle

NAME = "rounding"
NUM_STEPS = 3


def measured(case: Case, device: str, is_compiled: bool, backend: str = "inductor") -> dict[str, Any]:
    """One row.

    Args:
        case: of any size and depth.
        device: to run on.
        is_compiled: compile the blocks, too, and compare.
        backend: of torch.compile.
    """
    pipe = case.make(device)
    call = case.call(pipe, device, NUM_STEPS)
    still = eager_probe(pipe, call)
    errors = {
        "fresh": fresh_check(still, case.dtype).error,
        "stale": stale_error(pipe, call),
        "last place": still.rounding,
    }
    if is_compiled:
        with in_mode(pipe, "compiled", backend):
            settle(pipe, call)
            dense, region = compiled_checks(pipe, call, case.dtype, still)[:2]
        errors |= {"compiled dense": dense.error, "compiled region": region.error}
    return {
        "case": case.name,
        "title": case.title,
        "num_blocks": len(blocks_of(pipe)),
        "num_tokens": int(still.noises[0].shape[1]),
        "errors": errors,
    }


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    """Rows that differ in this stand side by side."""
    return row["case"], row["hardware"], row["versions"]["torch"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--depth", type=float, action="append", help="share of the blocks; several times for several")
    parser.add_argument("--size", help="of the picture or video, instead of the case's own")
    parser.add_argument("--dtype", help="instead of the case's own")
    parser.add_argument("--no-compiled", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    a = parser.parse_args()
    for depth in tqdm(a.depth or [1.0], unit="depth"):
        (case,) = chosen_cases((a.case,), a.device, a.dtype, a.size, depth)
        if reason := case.why_skipped(a.device):
            print(f"{case.name}: {reason}")
            continue
        row = {**record.environment(a.device), **measured(case, a.device, not a.no_compiled)}
        rows = record.read(NAME)["rows"] if (record.RESULTS / f"{NAME}.json").is_file() else []
        others = [one for one in rows if _key(one) != _key(row)]
        record.write(NAME, {"rows": [*others, row]})
        print(case.title, {kind: float(f"{error:.3g}") for kind, error in row["errors"].items()})
        gc.collect()


if __name__ == "__main__":
    main()
