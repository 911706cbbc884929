"""The arena on the embedded model: ``python -m benchmarks.arena`` writes ``benchmarks/results/arena_embedded.json`` and
``docs/images/arena.png``. It goes on where it stopped; ``--folder`` keeps the pictures. ``--add`` paints only what the
results do not hold yet (new methods, changed ones) beside both references, and puts those rows among the others. With
``--size 256`` a choice of methods paints 1,024 tokens, and the names end in ``_256``. ``--steps 50`` asks how the
presets do in a run of another length, beside dense solvers with as many steps, and writes
``arena_embedded_50_steps.json``.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import ras_dit
from benchmarks import record
from benchmarks.arena_tables import APART
from benchmarks.goals import YARDSTICKS, goals
from ras_dit.arena import SUITES, Arena, Method, chosen, report, suite
from ras_dit.arena.metrics import better_by
from ras_dit.arena.ours import GOALS, OF_PRESETS
from ras_dit.arena.perceptual import Perceptual, Weights
from ras_dit.arena.report import plot
from ras_dit.arena.rivals import NUM_STEPS
from ras_dit.cli.scenes import read_scenes
from ras_dit.embedded import EMBEDDED_SIZES, GUIDANCE_SCALE, MAX_SEQUENCE_LENGTH

IMAGE = Path(__file__).parent.parent / "docs" / "images" / "arena.png"


def memory_methods() -> list[Method]:
    """What the options that save memory cost in exactness, with region steps in all steps between dense ones."""
    regions = GOALS[11.5].replace(solver_order=1, forecast_damping=0.8, kv_forecast=0.0)
    changes: dict[str, dict[str, object]] = {
        "as it is": {},
        "kept in float8_e4m3fn": {"kv_cache_dtype": "float8_e4m3fn"},
        "kept in bfloat16": {"kv_cache_dtype": "bfloat16"},
        "kept by half of the layers": {"kv_cache_layers": 0.5},
        "kept by a quarter of the layers": {"kv_cache_layers": 0.25},
    }
    return [Method(f"cache {name}", "ras", config=regions.replace(**change)) for name, change in changes.items()]


REFERENCES = ("dense", "converged")
CONVERGED = {10: 60, 15: 60, 20: 60, 50: 100}
"""Steps of the converged run by those of the dense one, where that has another length than the presets are made for."""
SPARSE = "MagCache 1, up to 5 skipped, in the first fifth too"

PAIRS = [
    (ours, other)
    for ours, others in {
        **{
            f"regions in every step, T {token_steps}, order 1": (f"skipping only, T {skipping}, order 1", *others)
            for token_steps, skipping, others in (
                (17, 17, ("Euler, 17 steps", "UniPC 2, 17 steps", "Euler, 14 steps")),
                (11.5, 11, ("Euler, 12 steps", "UniPC 2, 12 steps", "authors, 0.25, 28 steps")),
            )
        },
        "regions in every step, T 17, order 2": (
            *("UniPC 2, 17 steps", "AB2, 17 steps", "DPM-Solver++ 2M, 17 steps", "Euler, 17 steps", "Euler, 20 steps"),
            *("authors, 0.5, 28 steps", "random, 0.5", "skipping only, T 17, order 2", "AB2 on those 17 steps"),
            *("TaylorSeer order 1, every 2", "DBCache 0.16", "RAS, tolerance 0.12"),
        ),
        "regions in every step, T 11.5, order 2": (
            *("UniPC 2, 12 steps", "UniPC 2, 14 steps", "AB2, 12 steps", "AB2, 14 steps", "DPM-Solver++ 2M, 14 steps"),
            *("Euler, 12 steps", "authors, 0.25, 28 steps", "random, 0.25", "round_robin, 0.25"),
            *("skipping only, T 11, order 2", "AB2 on those 11 steps", "MagCache 0.06", "MagCache 0.12"),
            *("DBCache 0.16", "DBCache 0.16 with TaylorSeer"),
        ),
        **{
            f"regions in every step, T 8.75, order {order}": (
                *(
                    "UniPC 2, 9 steps",
                    "UniPC 2, 12 steps",
                    "AB2, 9 steps",
                    "DPM-Solver++ 2M, 9 steps",
                    "Euler, 9 steps",
                ),
                *("authors, 0.125, 28 steps", "random, 0.125", f"skipping only, T 8, order {order}"),
                *("AB2 on those 8 steps", "MagCache 0.12", "DBCache 0.32"),
            )
            for order in (1, 2)
        },
        **{
            f"regions in every step, T 6, order {order}": (
                *("UniPC 2, 6 steps", "UniPC 2, 9 steps", "DPM-Solver++ 2M, 6 steps", "AB2, 6 steps", "Euler, 6 steps"),
                *(f"random, T 6, order {order}", f"skipping only, T 6, order {order}", "AB2 on those 6 steps"),
            )
            for order in (1, 2)
        },
        "skipping only, T 6, order 2": ("UniPC 2, 6 steps", "DPM-Solver++ 2M, 6 steps", "Euler, 6 steps", SPARSE),
        "skipping only, T 8, order 1": (SPARSE,),
        "regions midway, T 6, order 1": (
            *("Euler, 6 even steps", "UniPC 2, 6 steps", "DPM-Solver++ 2M, 6 steps", "skipping only, T 6, order 1"),
            *("random, T 6, order 1", "authors, 0.75, 7 steps", SPARSE, SPARSE.replace("5", "8")),
        ),
        "preset regions_faster": (
            *("Euler, 7 steps", "UniPC 2, 7 steps", "skipping only, T 8, order 1", "preset fast"),
            *("preset regions_fast", SPARSE, "MagCache 0.5, up to 5 skipped"),
            "TaylorSeer of attention and MLP order 1, every 6",
        ),
        "preset quality": (
            *("Euler, 17 steps", "UniPC 2, 17 steps", "Euler, 20 steps", "DBCache 0.08 with TaylorSeer"),
            *("TaylorSeer of attention and MLP order 1, every 2", "TaylorSeer lite order 1, every 2"),
            *("AB2, 17 even steps", "Euler, 17 even steps"),
        ),
        "preset balanced": (
            *("Euler, 12 steps", "UniPC 2, 12 steps", "MagCache 0.12", "MagCache 0.06", "DBCache 0.32"),
            *("TaylorSeer of attention and MLP order 1, every 3", "TaylorSeer of attention and MLP order 2, every 3"),
            *("TaylorSeer lite order 1, every 3", "AB2, 12 even steps", "Euler, 12 even steps", "preset regions"),
        ),
        "preset fast": (
            *("Euler, 9 steps", "UniPC 2, 9 steps", "UniPC 2, 12 steps", "regions in every step, T 8.75, order 1"),
            *("TaylorSeer of attention and MLP order 1, every 4", "TaylorSeer lite order 1, every 4"),
            *("AB2, 9 even steps", "Euler, 9 even steps"),
        ),
        "skipping only, T 17, order 2": (
            *("AB2, 17 even steps", "TaylorSeer of attention and MLP order 1, every 2", "UniPC 2, 17 steps"),
        ),
        "skipping only, T 11, order 2": (
            *("AB2, 12 even steps", "TaylorSeer of attention and MLP order 1, every 3", "UniPC 2, 12 steps"),
        ),
        "skipping only, T 6, order 1": (
            *("AB2, 6 even steps", "Euler, 6 even steps", "TaylorSeer of attention and MLP order 1, every 4"),
            *("UniPC 2, 6 steps", SPARSE),
        ),
        "preset regions": (
            *("Euler, 12 steps", "UniPC 2, 12 steps", "UniPC 2, 14 steps", "MagCache 0.06", "MagCache 0.12"),
            *("preset balanced", "skipping only, T 11, order 1", "regions in every step, T 11.5, order 1"),
            "regions, no K/V forecast",
            *("TaylorSeer of attention and MLP order 1, every 3", "DBCache 0.16 with TaylorSeer"),
        ),
        "preset regions_fast": (
            *("Euler, 9 steps", "UniPC 2, 9 steps", "UniPC 2, 12 steps", "AB2, 9 even steps", "preset fast"),
            *("preset balanced", "skipping only, T 8, order 1", "regions in every step, T 8.75, order 1"),
            *("MagCache 0.12", "TaylorSeer of attention and MLP order 1, every 4"),
        ),
        **{
            f"regions midway, T {token_steps}, order {order}": (
                f"regions in every step, T {token_steps}, order {order}",
                f"skipping only, T {skipping}, order {order}",
                *(f"UniPC 2, {dense} steps", f"UniPC 2, {dense + 2} steps", f"AB2, {dense} even steps", preset),
                f"TaylorSeer of attention and MLP order 1, every {every}",
                *(f"authors, {ratio}, 28 steps", f"random, {ratio}"),
                *(("MagCache 0.06", "DBCache 0.16 with TaylorSeer") if token_steps == 11.5 else ()),
            )
            for token_steps, skipping, dense, every, preset, ratio in (
                (17, 17, 17, 2, "preset quality", 0.5),
                (11.5, 11, 12, 3, "preset balanced", 0.25),
                (8.75, 8, 9, 4, "preset fast", 0.125),
            )
            for order in (1, 2)
        },
        "midway: nothing": tuple(
            method.name for method in SUITES["midway"](NUM_STEPS) if method.name.startswith("midway: ")
        )[1:],
        "ablation: nothing": tuple(
            method.name for method in SUITES["options"](NUM_STEPS) if method.name.startswith("ablation: ")
        )[1:],
    }.items()
    for other in others
] + [
    (f"preset {method.name.removeprefix(OF_PRESETS).split(',')[0]}", method.name)
    for method in SUITES["options"](NUM_STEPS)
    if method.name.startswith(OF_PRESETS)
]


AUTHORS = ("0.5, 28", "0.25, 28", "0.5, 15", "0.25, 15", "0.125, 15", "0.75, 7")
LARGE = (
    *("Euler, 14 steps", *(f"UniPC 2, {steps} steps" for steps in (17, 14, 12, 9, 7, 6))),
    *(f"{solver}, {steps} even steps" for solver in ("Euler", "AB2") for steps in (17, 12, 9, 7, 6)),
    *(f"DPM-Solver++ 2M, {steps} steps" for steps in (17, 7, 6)),
    *(f"authors, {run} steps{end}" for run in AUTHORS for end in ("", ", starvation 1")),
    *(*(f"round_robin, {r}" for r in (0.5, 0.25, 0.125)), "random, T 6, order 1"),
    *(f"regions in every step, T {token_steps}, order 1" for token_steps in (17, 11.5, 8.75, 6)),
    *(f"skipping only, T {token_steps}, order 1" for token_steps in (17, 11, 8, 6)),
    *(f"regions midway, T {token_steps}, order 1" for token_steps in (17, 11.5, 6)),
    *(f"regions midway, T {token_steps}, order 2" for token_steps in (17, 11.5)),
    *(f"preset {name}" for name in ras_dit.PRESETS),
    *(name for _, name in PAIRS if name.startswith(OF_PRESETS) and name.endswith(", forecasts from the beginning")),
    f"{OF_PRESETS}fast, forecasts below 0.93 only",
    *(f"TaylorSeer of attention and MLP order 1, every {interval}" for interval in (2, 3, 4, 6)),
    *("MagCache 0.06", "MagCache 0.12", "MagCache 0.24", "MagCache 0.5, up to 5 skipped", SPARSE),
    *(f"DBCache {threshold}{seer}" for threshold in (0.08, 0.16, 0.32) for seer in ("", " with TaylorSeer")),
)
"""Of the suites, what is painted at 256 x 256 if nothing else is chosen."""


def length_methods(pipe: Any, num_steps: int) -> tuple[list[Method], list[tuple[str, str]]]:
    """The presets in a run of another length, with and without an option that depends on noise levels, dense solvers
    with no fewer steps, and the pairs to compare."""
    methods, pairs = [], []
    changed = {method.name: method for method in SUITES["options"](num_steps)}
    for name, config in ras_dit.PRESETS.items():
        count = math.ceil(ras_dit.plan_for(pipe, config, num_steps).token_steps)
        preset = Method(f"preset {name}", "ras", num_steps, config=config)
        solvers = [
            Method(f"Euler, {count} steps", "dense", count),
            Method(f"UniPC 2, {count} steps", "dense", count, "unipc"),
        ]
        methods += [preset, *(solver for solver in solvers if solver not in methods)]
        pairs += [(preset.name, solver.name) for solver in solvers]
        if (at_once := changed.get(f"{OF_PRESETS}{name}, forecasts from the beginning")) is not None:
            methods.append(at_once)
            pairs.append((preset.name, at_once.name))
    return methods, pairs


def paired(
    rows: list[dict[str, Any]], pairs: list[tuple[str, str]], earlier: list[dict[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """Differences picture by picture with 95 % bootstrap intervals, which are far narrower than those of the means.

    Args:
        rows: of a result.
        pairs: names of ours and another.
        earlier: differences that were worked out before; they stay where neither row holds its pictures' values.

    Raises:
        ValueError: one of two rows alone holds them.
    """
    by_name = {row["name"]: row.get("per_picture") for row in rows}
    kept = {(one["ours"], one["other"]): one for one in earlier or ()}
    found = []
    for ours, other in pairs:
        if ours not in by_name or other not in by_name:
            continue
        mine, others = by_name[ours], by_name[other]
        if (mine is None) != (others is None):
            raise ValueError(
                f"pairs: got no values per picture of {ours if mine is None else other}; paint it --again."
            )
        if mine is None or others is None:
            found += [kept[ours, other]] if (ours, other) in kept else []
            continue
        differences = {key: [round(value, 3) for value in better_by(mine[key], others[key])] for key in YARDSTICKS}
        found.append({"ours": ours, "other": other, **differences})
    return found


def missing(methods: list[Method], earlier: dict[str, Any], again: Sequence[str] = ()) -> list[Method]:
    """Methods that an earlier result does not hold, or holds with other options, and those that are wanted again."""
    known = [row["method"] for row in earlier["rows"] if row["method"]["name"] not in again]
    failed = earlier["failures"]
    return [m for m in methods if json.loads(json.dumps(m.to_dict())) not in known and m.name not in failed]


def check_references(earlier: dict[str, Any], methods: Sequence[dict[str, Any]]) -> None:
    """Refuse rows that are compared with other pictures than those of an earlier result.

    Args:
        earlier: a result.
        methods: of the later one, as JSON has them, both references among them.

    Raises:
        ValueError: a reference is another one there.
    """
    known = [row["method"] for row in earlier["rows"]]
    for name in REFERENCES:
        mine, theirs = (next((one for one in each if one["name"] == name), None) for each in (methods, known))
        if mine != theirs:
            raise ValueError(
                f"--add: got the {name} run {mine}; the result has {theirs}. Rows side by side have to be compared "
                "with the same pictures: give its --steps and --converged-steps, or run the arena without --add."
            )


def merged(earlier: dict[str, Any], added: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Rows of both, in this order of names; each says at which commit it was made, and on which hardware if that is
    not the later one's.

    Args:
        earlier: a result.
        added: a later one of other methods, on the same pictures; its rows take the place of those of the same name.
        names: of all methods that are wanted.

    Raises:
        ValueError: they were not made alike.
    """
    for key in ("num_pictures", "call", "versions"):
        if earlier[key] != added[key]:
            raise ValueError(
                f"--add: got {key} {added[key]}; the result has {earlier[key]}. Rows side by side have to be made "
                "alike: run the arena without --add."
            )
    check_references(earlier, [row["method"] for row in added["rows"]])
    rows = {}
    for result in (earlier, added):
        made = {"commit": result["commit"], "hardware": result["hardware"]}
        rows |= {row["name"]: {**made, **row} for row in result["rows"]}
    for row in rows.values():
        if row["hardware"] == added["hardware"]:
            del row["hardware"]
    failures = earlier["failures"] | added["failures"]
    return {
        **added,
        "rows": [rows[name] for name in (*REFERENCES, *names) if name in rows],
        "failures": {name: why for name, why in failures.items() if name in names},
        "sensitivity": added["sensitivity"] or earlier["sensitivity"],
        "notes": list(dict.fromkeys([*earlier.get("notes", []), *added.get("notes", [])])),
    }


def draw(rows: list[dict[str, Any]], name: str) -> None:
    """The plot of a result in docs/images, without the rows that have one thing changed."""
    whole = [row for row in rows if not row["name"].startswith(APART)]
    plot(whole, IMAGE.with_stem(name.replace("arena_embedded", "arena")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="outputs/arena, or outputs/arena_256")
    parser.add_argument("--pictures", type=int, help="default: 24, or 12 at another size or length than the first")
    parser.add_argument("--batch", type=int, default=6, help="pictures in one call")
    parser.add_argument("--suites", default="all", help="with commas; all of them without it")
    parser.add_argument("--only", action="append", help="a method of the suites by name; several times for several")
    parser.add_argument("--converged-steps", type=int, help="default: 200, 100 at 256 pixels, fewer at other lengths")
    parser.add_argument("--steps", type=int, default=NUM_STEPS, help="of the dense run; others ask how the presets do")
    parser.add_argument("--size", type=int, default=EMBEDDED_SIZES[0], choices=EMBEDDED_SIZES, help="pixels a side")
    parser.add_argument("--result", help="name of the results file; the plot is not copied then")
    parser.add_argument("--add", action="store_true", help="paint only what the results file does not hold yet")
    parser.add_argument("--again", action="append", help="with --add: a method to paint though it is there")
    parser.add_argument("--plot", action="store_true", help="compare and draw anew from the results file, and no more")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--lpips-weights", type=Path, help="torchvision's VGG16 or AlexNet")
    parser.add_argument("--inception-weights", type=Path, help="torch-fidelity's InceptionV3")
    parser.add_argument("--clip-model", help="a transformers folder")
    parser.add_argument("--real", type=Path, help="folder of real pictures")
    a = parser.parse_args()
    weights = Weights(a.lpips_weights, a.inception_weights, a.clip_model, a.real)
    is_large, is_other_length = a.size != EMBEDDED_SIZES[0], a.steps != NUM_STEPS
    num_converged = a.converged_steps or CONVERGED.get(a.steps, 100 if is_large else 200)
    ending = (f"_{a.size}" if is_large else "") + (f"_{a.steps}_steps" if is_other_length else "")
    folder = a.folder or Path(f"outputs/arena{ending}")
    name = a.result or f"arena_embedded{ending}"
    if a.plot:
        result = record.read(name)
        if "goals" in result:
            record.write(name, {**result, "goals": goals(result["rows"])})
        draw(result["rows"], name)
        return
    pipe = ras_dit.load_embedded(device=a.device, size=a.size)
    pipe.set_progress_bar_config(disable=True)
    scenes = read_scenes(None, a.pictures or (12 if ending else 24), is_embedded=True)
    call = {"guidance_scale": GUIDANCE_SCALE, "max_sequence_length": MAX_SEQUENCE_LENGTH}
    if is_other_length:
        methods, pairs = length_methods(pipe, a.steps)
    else:
        methods, pairs = [*suite(a.suites), *memory_methods()], PAIRS
    if only := a.only or (LARGE if is_large and not is_other_length else ()):
        methods = chosen(methods, only)
    earlier = record.read(name) if a.add else None
    names = [method.name for method in methods]
    if earlier is not None:
        methods = missing(methods, earlier, a.again or ())
        print("to be added:", ", ".join(method.name for method in methods) or "nothing")
    arena = Arena(folder, scenes, methods, call, a.batch, a.steps, num_converged)
    if earlier is not None:
        check_references(earlier, [method.to_dict() for method in arena.methods])
    with tqdm(total=arena.num_calls, desc="arena", unit="call") as bar:
        arena.run(pipe, bar.update)
    result: dict[str, Any] = {
        **record.environment(a.device),
        **report(arena, perceptual=Perceptual.load(weights, a.device)),
    }
    for row in result["rows"]:  # all of it is in the folder's results.json
        row["per_picture"] = {key: row["per_picture"][key] for key in YARDSTICKS if key in row["per_picture"]}
    if earlier is not None:
        result = merged(earlier, result, names)
    result["paired"] = paired(result["rows"], pairs, None if earlier is None else earlier["paired"])
    if not is_other_length:
        result["goals"] = goals(result["rows"])
    print("wrote", record.write(name, result).name)
    if a.result is None and not is_other_length:
        draw(result["rows"], name)


if __name__ == "__main__":
    main()
