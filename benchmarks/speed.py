"""Speed of the models by their dimensions: ``ras-dit bench`` with its results kept in the repository.

``python -m benchmarks.speed --case mid`` writes ``benchmarks/results/speed_mid.json``. What is finished already lies in
``outputs/bench``, and is not measured again by the same code with the same options. Results of a second kind of machine
stand beside those of the first under a name of their own: ``--machine avx512`` writes ``speed_mid_avx512.json``. A
result that has modes or picture sizes which the new one does not have is not written over without ``--replace``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import record
from ras_dit.bench import CASES, DTYPES, Benchmark, Results, Settings, chosen_cases, environment
from ras_dit.bench.results import part_of

FOLDER = Path("outputs/bench")


@contextmanager
def bar(title: str, total: int) -> Iterator[Any]:
    """A bar that counts loops."""
    with tqdm(desc=title, total=total, unit="loop") as shown:
        yield lambda text: shown.update()


def published(case: dict[str, Any], device: str) -> dict[str, Any]:
    """A case's results as they are kept: where and when first, no claims for resuming."""
    kept = {key: value for key, value in case.items() if key not in ("finished", "tried")}
    return {**record.environment(device), "device": device, **kept}


def measured(case: dict[str, Any]) -> set[str]:
    """What a case's results hold: modes of whole loops, and sizes of a mode."""
    loops = {row.get("mode", "eager") for row in case["rows"]}
    crossed = case.get("crossover", {}).items()
    return loops | {part_of(mode, row["size"]) for mode, found in crossed for row in found["rows"]}


def why_kept(name: str, case: dict[str, Any], environment: Mapping[str, Any]) -> str | None:
    """Why a result that is there should not be written over by these; None if nothing speaks against it.

    Args:
        name: of the result.
        case: what was measured.
        environment: code, machine and versions of today, which its figures are going to be given as.
    """
    claims = [*case["finished"].values(), *(one["claim"] for one in case.get("tried", {}).values())]
    if any(claim.get(key) != value for claim in claims for key, value in environment.items()):
        return "parts of it are of different code, versions or machines: measure them again"
    there = record.RESULTS / f"{name}.json"
    lost = measured(record.read(name)) - measured(case) if there.is_file() else set()
    return f"the one that is there has {', '.join(sorted(lost))} too" if lost else None


def commands(a: argparse.Namespace, settings: Settings) -> Iterator[list[str]]:
    """The arguments of the processes that measure apart, without writing a result: a case, a mode, and whole loops or
    picture sizes each. A profiler slows down what a GPU does after it in the same process."""
    kept = ("device", "ratios", "folder", "repeats", "dtype", "size", "depth", "steps", "machine")
    common = [word for name in kept if getattr(a, name) is not None for word in (f"--{name}", str(getattr(a, name)))]
    common += ["--only-measure", *(["--kernels"] if a.kernels else []), *(["--variants"] if a.variants else [])]
    is_as_it_ships = a.size is None and a.depth is None
    fitting = [
        case.name
        for case in chosen_cases((), a.device, None, None, None)
        if case.dimensions is not None or (is_as_it_ships and a.dtype in (None, case.dtype))
    ]
    for name in a.case or fitting:
        (case,) = chosen_cases((name,), a.device, a.dtype, a.size, a.depth)
        for mode in settings.modes:
            if settings.has_loops:
                yield ["--case", name, "--mode", mode, "--no-crossover", *common, *_given("--presets", a.presets)]
            if settings.has_crossover and settings.sizes_of(case):
                yield ["--case", name, "--mode", mode, "--no-loops", *common, *_given("--sizes", a.sizes)]


def _given(flag: str, value: str | None) -> list[str]:
    return [] if value is None else [flag, value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    has_gpu = torch.cuda.is_available()
    parser.add_argument("--case", choices=CASES, action="append", help="default: those that fit this machine")
    parser.add_argument("--device", default="cuda" if has_gpu else "cpu")
    parser.add_argument(
        "--mode", action="append", help="eager, compiled or reduce-overhead; default: eager, on a GPU all"
    )
    parser.add_argument("--crossover", action="store_true", help="picture sizes against ratios, too")
    parser.add_argument("--no-loops", action="store_true", help="the crossover alone")
    parser.add_argument("--no-crossover", action="store_true", help="whole loops alone, on a GPU too")
    parser.add_argument("--ratios", help="with commas, instead of the case's own, its presets and variants")
    parser.add_argument("--presets", help="with commas, with --ratios or without, instead of the same")
    parser.add_argument("--variants", action="store_true", help="the case's own variants beside --ratios, too")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="what is finished, to go on with")
    parser.add_argument("--sizes", help="of the crossover, with commas, instead of the case's own")
    parser.add_argument("--repeats", type=int, help="whole loops of every setting, instead of the case's own")
    parser.add_argument("--dtype", choices=DTYPES, help="instead of the case's own")
    parser.add_argument("--size", help="of whole loops, instead of the case's own")
    parser.add_argument("--depth", type=float, help="share of the blocks, where the whole model does not fit")
    parser.add_argument("--kernels", action="store_true", help="by the Triton kernels, on a GPU")
    parser.add_argument("--steps", type=int, help="evaluations, for a quick look: nothing is written then")
    parser.add_argument("--machine", help="ends the names of the results; after cuda on a GPU")
    parser.add_argument("--replace", action="store_true", help="write over results that hold more, or other, parts")
    parser.add_argument("--apart", action="store_true", help="loops and sizes of every mode in a process of their own")
    parser.add_argument("--only-measure", action="store_true", help="write nothing but the folder's file")
    a = parser.parse_args()
    is_gpu = a.device.startswith("cuda")
    modes = tuple(a.mode or (("eager", "compiled", "reduce-overhead") if is_gpu else ("eager",)))
    settings = Settings(
        device=a.device,
        modes=modes,
        sizes=tuple(a.sizes.split(",")) if a.sizes else None,
        repeats=a.repeats,
        num_steps=a.steps,
        ratios=tuple(float(word) for word in a.ratios.split(",")) if a.ratios else None,
        presets=tuple(a.presets.split(",")) if a.presets else None,
        has_variants=a.variants,
        has_crossover=a.crossover or bool(a.sizes) or a.no_loops or (is_gpu and not a.no_crossover),
        has_loops=not a.no_loops,
    )
    is_green = True
    kind = None if a.device == "cpu" else a.device.split(":")[0]
    cases = chosen_cases(tuple(a.case or ()), a.device, a.dtype, a.size, a.depth)
    is_asked = a.crossover or a.no_loops or bool(a.sizes)
    cases = settings.with_parts(cases, is_named=is_asked and bool(a.case))
    for words in commands(a, settings) if a.apart else ():
        is_green &= subprocess.run([sys.executable, "-m", "benchmarks.speed", *words], check=False).returncode == 0
    for case in (case.with_kernels() for case in cases) if a.kernels else cases:
        name = "_".join(["speed", case.name, *filter(None, (kind, a.machine))])
        path = None if a.steps else a.folder / f"{name}.json"
        results = Results(None, {})
        try:
            with Results.opened(path, environment(a.device)) as results:
                if not a.apart:
                    is_green &= Benchmark(settings, results, bar, print).run([case])
        except Exception:  # the next case may do better; what this one has is written
            traceback.print_exc()
            is_green = False
        found = results.cases.get(case.name)
        if not found or not (found["rows"] or found["crossover"]):
            continue
        for row in found["rows"]:
            if a.only_measure and not (settings.has_loops and row["mode"] in modes):
                continue
            limit = f"  limit {row['limit']:.2f}x  {row['share_of_limit']:.0%} of it" if "limit" in row else ""
            print(f"{row['mode']:<16} {row['name']:<12} {row['median']:8.3f} s  {row['speedup']:.2f}x{limit}")
        if a.only_measure:
            continue
        if reason := path and not a.replace and why_kept(name, found, results.environment):
            print(f"{name}.json is left as it is: {reason}. What was measured is in {path}; --replace takes it.")
            is_green = False
        elif path is not None:
            print("wrote", record.write(name, published(found, a.device)).name)
    sys.exit(not is_green)


if __name__ == "__main__":
    main()
