"""What a plan found on dense runs is worth: ``python -m benchmarks.plan_search`` finds one for the cost of every preset
but ``quality``, in runs of some lengths, and paints both; ``--agreement`` says how well the simulation behind it knows
what plans of the arena really did. Each length and picture size is a part of
``benchmarks/results/plan_search_embedded.json``.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import ras_dit
from benchmarks import record
from benchmarks.arena import paired
from ras_dit import RASConfig
from ras_dit.arena import Arena, Method, report
from ras_dit.arena.rivals import NUM_STEPS
from ras_dit.cli.scenes import read_scenes
from ras_dit.dense_runs import Choices, SameRuns
from ras_dit.embedded import EMBEDDED_SIZES, GUIDANCE_SCALE, MAX_SEQUENCE_LENGTH, embedded_scenes
from ras_dit.plan_search import best_plan

CALL = {"guidance_scale": GUIDANCE_SCALE, "max_sequence_length": MAX_SEQUENCE_LENGTH}
NAME = "plan_search_embedded"
PRESETS = ("balanced", "fast", "regions", "regions_fast", "regions_faster")
SIZE = EMBEDDED_SIZES[0]
"""Of the pictures that the presets' plans were found on, in pixels."""
SEED = 9000
"""Of the pictures that plans are found on; those of the arena begin at 1000."""
CHECKED = RASConfig().to_dict()
VARIED = ("step_ratios", "forecast_order", "forecast_damping", "forecast_below", "forecast_reach", "kv_forecast")
"""Options that the simulation knows of; plans with others are left out of the agreement."""


def call_for(num_steps: int, num_pictures: int) -> dict[str, Any]:
    """The call that plans are found on."""
    generators = [torch.Generator().manual_seed(SEED + index) for index in range(num_pictures)]
    prompts = [scene.prompt for scene in embedded_scenes(num_pictures)]
    return {"prompt": prompts, "generator": generators, "num_inference_steps": num_steps, **CALL}


def part_of(pipe: Any, size: int, num_steps: int, num_pictures: int, fit_pictures: int, batch: int) -> dict[str, Any]:
    """Presets beside plans that cost as much, in runs of a length."""
    runs = SameRuns(pipe, RASConfig.preset("regions"), call_for(num_steps, fit_pictures))
    recorded, methods = runs.recorded(), []
    for name in tqdm(PRESETS, desc=f"finding plans of {num_steps} steps"):
        preset = RASConfig.preset(name)
        cost = 1 / ras_dit.plan_for(pipe, preset, num_steps, max_sequence_length=MAX_SEQUENCE_LENGTH).speedup_limit
        try:
            found = best_plan(runs, recorded, preset, cost)
        except ValueError as error:  # it costs too little for a run of this length
            tqdm.write(f"{name}: {error}")
            continue
        methods += [
            Method(f"preset {name}", "ras", num_steps, config=preset),
            Method(f"found for {name}", "ras", num_steps, config=found),
        ]
    scenes = read_scenes(None, num_pictures, is_embedded=True)
    folder = Path("outputs") / f"plan_search_{part_name(size, num_steps).replace(', ', '_')}"
    arena = Arena(folder, scenes, methods, CALL, batch, num_steps, converged_steps=num_steps)  # (no use is made of it)
    with tqdm(total=arena.num_calls, desc="painting", unit="call") as bar:
        arena.run(pipe, bar.update)
    result = report(arena, has_plot=False)
    pairs = [(found.name, preset.name) for preset, found in zip(methods[::2], methods[1::2], strict=True)]
    rows = [row for row in result["rows"] if row["group"] == "ras"]
    return {
        **record.environment(),
        "size": size,
        "num_steps": num_steps,
        "num_pictures": num_pictures,
        "fit_pictures": fit_pictures,
        "paired": paired(result["rows"], pairs),
        "rows": [{key: value for key, value in row.items() if key != "per_picture"} for row in rows],
    }


def part_name(size: int, num_steps: int) -> str:
    """What a part is called in the results."""
    return str(num_steps) if size == SIZE else f"{num_steps}, {size}"


def agreement(pipe: Any, fit_pictures: int) -> dict[str, Any]:
    """What the simulation says of the arena's plans, beside what they really did."""
    run = SameRuns(pipe, RASConfig.preset("regions"), call_for(NUM_STEPS, fit_pictures)).recorded()
    rows = []
    for row in record.read("arena_embedded")["rows"]:
        options = row["method"].get("config")
        if not options or not options["step_ratios"] or "psnr_dense" not in row["metrics"]:
            continue
        if options["forecast_order"] > 1 or any(options[name] != CHECKED[name] for name in set(CHECKED) - set(VARIED)):
            continue
        config = RASConfig.from_dict(options)
        choices = Choices(config.step_ratios, config.forecast_damping * config.forecast_order, config.forecast_below)
        rows.append([row["name"], run.nearness(choices, config), row["metrics"]["psnr_dense"][0]])
    said, did = (np.array([row[column] for row in rows], dtype=float) for column in (1, 2))
    line = np.polyfit(said, did, 1)
    return {
        **record.environment(),
        "growth": [round(value, 3) for value in run.growth],
        "correlation": round(float(np.corrcoef(said, did)[0, 1]), 3),
        "residual": round(float(np.std(did - np.polyval(line, said))), 2),
        "line": [round(float(value), 3) for value in line],
        "plans": [[name, round(float(x), 2), round(float(y), 2)] for name, x, y in rows],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, action="append", help="lengths of runs; 20 and 28 without it")
    parser.add_argument("--agreement", action="store_true", help="that alone")
    parser.add_argument("--size", type=int, choices=EMBEDDED_SIZES, default=SIZE, help="of the pictures, in pixels")
    parser.add_argument("--pictures", type=int, default=16, help="of the measurement, one prompt each")
    parser.add_argument("--fit-pictures", type=int, default=8, help="to fit to, other ones")
    parser.add_argument("--batch", type=int, default=8, help="pictures in one call")
    a = parser.parse_args()
    if a.agreement and a.size != SIZE:
        parser.error(f"--size: got {a.size} with --agreement; allowed: {SIZE}, the size of the arena's plans.")
    pipe = ras_dit.load_embedded(size=a.size)
    pipe.set_progress_bar_config(disable=True)
    has_any = os.path.isfile(record.RESULTS / f"{NAME}.json")
    result: dict[str, Any] = record.read(NAME) if has_any else {"parts": {}}
    if a.agreement:
        result["agreement"] = agreement(pipe, a.fit_pictures)
        record.write(NAME, result)
        return
    for num_steps in a.steps or (20, 28):
        name = part_name(a.size, num_steps)
        result["parts"][name] = part_of(pipe, a.size, num_steps, a.pictures, a.fit_pictures, a.batch)
        record.write(NAME, result)


if __name__ == "__main__":
    main()
