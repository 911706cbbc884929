"""What fitting a forecast to dense runs is worth: ``python -m benchmarks.calibration`` fits presets and plans of the
arena on some pictures, paints others with and without the fit, and writes
``benchmarks/results/calibration_embedded.json``. It goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import ras_dit
from benchmarks import record
from benchmarks.arena import paired
from ras_dit.arena import Arena, Method, report, suite
from ras_dit.arena.rivals import NUM_STEPS
from ras_dit.calibration import DenseRun
from ras_dit.cli.scenes import read_scenes
from ras_dit.embedded import GUIDANCE_SCALE, MAX_SEQUENCE_LENGTH, embedded_scenes

CALL = {"guidance_scale": GUIDANCE_SCALE, "max_sequence_length": MAX_SEQUENCE_LENGTH}
FITTED = (
    *("preset quality", "preset balanced", "preset fast", "preset regions", "preset regions_fast"),
    *("regions in every step, T 17, order 2", "regions in every step, T 11.5, order 2"),
    "regions in every step, T 8.75, order 1",
    *("skipping only, T 11, order 2", "skipping only, T 8, order 1", "skipping only, T 6, order 1"),
)
OTHERS = (*(f"UniPC 2, {steps} steps" for steps in (17, 12, 9, 6)), "MagCache 0.06", "MagCache 0.12")
SUFFIX = ", fitted"
SEED = 9000
"""Of the pictures that are fitted to; those of the arena begin at 0."""


def fitted(pipe: Any, methods: Iterable[Method], num_pictures: int) -> list[Method]:
    """Methods with their forecasts fitted to dense runs of their order."""
    call = {
        "prompt": [scene.prompt for scene in embedded_scenes(num_pictures)],
        "generator": [torch.Generator().manual_seed(SEED + index) for index in range(num_pictures)],
        "num_inference_steps": NUM_STEPS,
        **CALL,
    }
    dense = {order: DenseRun(pipe, order, **call) for order in (1, 2)}
    found = []
    for method in methods:
        assert method.config is not None
        config = dense[method.config.solver_order].fit(method.config)
        found.append(dataclasses.replace(method, name=method.name + SUFFIX, config=config))
    return found


def pairs(names: list[str]) -> list[tuple[str, str]]:
    """Every fitted method against itself without the fit; the presets against dense solvers and a cache as well."""
    against = {
        "preset quality": ("UniPC 2, 17 steps",),
        "preset balanced": ("UniPC 2, 12 steps", "MagCache 0.06", "MagCache 0.12"),
        "preset fast": ("UniPC 2, 9 steps", "UniPC 2, 12 steps", "MagCache 0.12"),
        "skipping only, T 6, order 1": ("UniPC 2, 6 steps", "UniPC 2, 9 steps"),
    }
    return [(name + SUFFIX, other) for name in names for other in (name, *against.get(name, ()))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("outputs/calibration"), help="what is painted already")
    parser.add_argument("--pictures", type=int, default=16, help="of the measurement, one prompt each")
    parser.add_argument("--fit-pictures", type=int, default=8, help="to fit to, other ones")
    parser.add_argument("--batch", type=int, default=8, help="pictures in one call")
    parser.add_argument("--converged-steps", type=int, default=100, help="of the run taken for converged")
    a = parser.parse_args()
    pipe = ras_dit.load_embedded()
    pipe.set_progress_bar_config(disable=True)
    known = {method.name: method for method in suite("dense,caches,goals,presets")}
    plain = [known[name] for name in FITTED]
    with tqdm(plain, desc="fitting") as bar:
        methods = [*plain, *fitted(pipe, bar, a.fit_pictures)]
    methods += [known[name] for name in OTHERS]
    arena = Arena(a.folder, read_scenes(None, a.pictures, True), methods, CALL, a.batch, NUM_STEPS, a.converged_steps)
    with tqdm(total=arena.num_calls, desc="painting", unit="call") as bar:
        arena.run(pipe, bar.update)
    result: dict[str, Any] = report(arena)
    result["paired"] = paired(result["rows"], pairs([method.name for method in plain]))
    for row in result["rows"]:
        row.pop("per_picture")  # they are in the folder's results.json
    result["fit_pictures"] = a.fit_pictures
    print("wrote", record.write("calibration_embedded", {**record.environment(), **result}).name)


if __name__ == "__main__":
    main()
