"""What a step costs the host: time of Python and PyTorch to issue its operations, on transformers so narrow that these
compute next to nothing. A GPU that is done sooner waits for it, where blocks are not compiled.

``python -m benchmarks.host_cost`` writes ``benchmarks/results/host_cost.json``.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from tqdm import tqdm

import ras_dit
from benchmarks import record
from ras_dit.bench.architectures import ARCHITECTURES, Dimensions, Size, build_pipeline, random_call
from ras_dit.bench.registry import CASES
from ras_dit.config import RASConfig

MODELS = ("sd3-medium", "lumina-next", "flux-dev", "qwen-image", "wan-1.3b")
NUM_LAYERS = 12
NUM_STEPS = 40
REPEATS = 9
FIRST = 10
"""Steps from here on are timed: in turns dense ones, which keep keys and values, and region steps."""
CONFIG = RASConfig(sample_ratio=0.25, warmup_steps=4, refresh_steps=tuple(range(FIRST, NUM_STEPS, 2)))


def tiny_dimensions(name: str) -> Dimensions:
    """A case's architecture, narrow, with as many layers for all."""
    dimensions = CASES[name].dimensions
    assert dimensions is not None
    tiny = dimensions.tiny()
    return replace(tiny, arguments={**tiny.arguments, "num_layers": NUM_LAYERS})


def step_seconds(pipe: Any, call: dict[str, Any]) -> list[float]:
    """Of the timed steps of a run."""
    times = [time.perf_counter()]

    def note(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        times.append(time.perf_counter())
        return tensors

    pipe(**call, num_inference_steps=NUM_STEPS, callback_on_step_end=note)
    return [after - before for before, after in itertools.pairwise(times)][FIRST:]


def wrapped_processors(pipe: Any) -> dict[torch.nn.Module, Any]:
    """Every attention module's processor, by a wrapper that keeps RAS from the short way to its attention call."""
    found = {}
    for module in pipe.transformer.modules():
        if "processor" in vars(module):
            found[module] = _wrapped(module.processor)
    return found


def _wrapped(processor: Any) -> Any:
    own = type(processor)

    @functools.wraps(own.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return own.__call__(self, *args, **kwargs)

    wrapped = object.__new__(type(own.__name__, (own,), {"__call__": call}))
    wrapped.__dict__ = vars(processor)
    return wrapped


def measured(name: str) -> dict[str, float]:
    """Median milliseconds of a step: without RAS, on all tokens and on a quarter of them; with RAS, dense and region,
    and region steps that look at every operation of an attention module."""
    dimensions = tiny_dimensions(name)
    size = dimensions.size
    quarter = replace(dimensions, size=Size(size.height // 2, size.width // 2, size.num_frames))
    pipe = build_pipeline(dimensions, "cpu", torch.float32)
    pipe.set_progress_bar_config(disable=True)
    call, fewer = (random_call(pipe, each, 1, "cpu", torch.float32) for each in (dimensions, quarter))
    own = {module: module.processor for module in pipe.transformer.modules() if "processor" in vars(module)}
    wrapped = wrapped_processors(pipe)
    seconds: dict[str, list[float]] = {}

    def add(kind: str, times: list[float]) -> None:
        seconds.setdefault(kind, []).extend(times)

    step_seconds(pipe, call)
    for _ in range(REPEATS):
        add("without RAS", step_seconds(pipe, call))
        add("without RAS, a quarter of the tokens", step_seconds(pipe, fewer))
        for ending, processors in (("", own), (", the long way", wrapped)):
            for module, processor in processors.items():
                module.processor = processor
            with ras_dit.accelerate(pipe, CONFIG) as handle:
                times = step_seconds(pipe, call)
                kinds = [step.kind for step in handle.trace.steps][FIRST:]
            for kind, spent in zip(kinds, times, strict=True):
                add(kind + ending, [spent])
        for module, processor in own.items():
            module.processor = processor
    return {kind: 1000 * statistics.median(times) for kind, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--models", default=",".join(MODELS), help="with commas; results are written of all alone")
    names = parser.parse_args().models.split(",")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for name in tqdm(names):
        milliseconds = measured(name)
        transformer = ARCHITECTURES[tiny_dimensions(name).architecture].transformer
        rows.append({"transformer": transformer, "milliseconds": milliseconds})
        tqdm.write(f"{transformer}: {', '.join(f'{kind} {value:.2f}' for kind, value in milliseconds.items())}")
    if names == list(MODELS):
        config = {"layers": NUM_LAYERS, "steps": NUM_STEPS, "repeats": REPEATS, "threads": 1, "ratio": 0.25}
        print("wrote", record.write("host_cost", {**record.environment(), "config": config, "rows": rows}).name)


if __name__ == "__main__":
    main()
