"""What an active set per image is worth in a batch, and what it costs where the transformer has to compute region steps
one image after the other: ``python -m benchmarks.batch`` writes ``benchmarks/results/batch_embedded.json`` (with
``--size 256`` ``batch_embedded_256.json``).

The embedded model can do either, so that it stands in for models whose position tables have no batch dimension.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import ras_dit
from benchmarks import record
from ras_dit import RASConfig
from ras_dit.arena.metrics import MAX_PSNR, better_by, mean_interval
from ras_dit.embedded import GUIDANCE_SCALE, MAX_SEQUENCE_LENGTH, embedded_prompts
from ras_dit.models import TOKEN_PLANS
from ras_dit.quality import psnr

STEPS = 28
CONFIGS = {
    "preset regions": ras_dit.PRESETS["regions"],
    "preset regions_fast": ras_dit.PRESETS["regions_fast"],
    "the paper's dense steps, ratio .5": RASConfig(sample_ratio=0.5, refresh_steps=(12, 20), forecast_order=1),
    "the paper's dense steps, ratio .25": RASConfig(sample_ratio=0.25, refresh_steps=(12, 20), forecast_order=1),
}
WAYS = ("own sets, together", "own sets, in turn", "one shared set")


@dataclass
class Setting:
    """One config, one way to go through a batch, and what it came to."""

    name: str
    config: RASConfig
    way: str
    psnr: list[float] = field(default_factory=list)
    speedups: list[float] = field(default_factory=list)
    token_steps: float = 0.0

    @contextmanager
    def applied(self, pipe: Any) -> Iterator[ras_dit.Handle]:
        """RAS on a pipeline, in this way."""
        name = type(pipe.transformer).__name__
        plan = TOKEN_PLANS[name]
        config = self.config.replace(shared_active_set=self.way == "one shared set")
        try:
            TOKEN_PLANS[name] = replace(plan, has_shared_positions=self.way == "own sets, in turn")
            with ras_dit.accelerate(pipe, config) as handle:
                yield handle
        finally:
            TOKEN_PLANS[name] = plan


def painted(pipe: Any, prompts: list[str], first: int, size: int) -> tuple[np.ndarray, float]:
    """Pictures of a batch [B, H, W, 3], 8 bits, and the seconds it took."""
    generators = [torch.Generator().manual_seed(700 + first + index) for index in range(len(prompts))]
    started = time.perf_counter()
    output = pipe(
        prompt=prompts,
        generator=generators,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE_SCALE,
        max_sequence_length=MAX_SEQUENCE_LENGTH,
        height=size,
        width=size,
        output_type="np",
    )
    return np.round(255 * output.images).astype(np.uint8), time.perf_counter() - started


@torch.no_grad()
def compared(pipe: Any, prompts: list[str], batch: int, size: int, repeats: int) -> list[dict[str, Any]]:
    """Every setting on every batch, in turns with the dense run.

    Returns:
        Rows with ``name``, ``way``, ``token_steps``, ``psnr`` to the dense run and ``better_by`` (own sets against a
        shared one, picture by picture), means with 95 % bootstrap intervals, and ``speedup``: the median over all runs
        of the seconds of the dense run before over those of the run.
    """
    settings = [Setting(name, config, way) for name, config in CONFIGS.items() for way in WAYS]
    starts = range(0, len(prompts), batch)
    with tqdm(total=len(starts) * repeats * (1 + len(settings)), desc="batches", unit="call") as bar:
        for first, repeat in itertools.product(starts, range(repeats)):
            asked = prompts[first : first + batch]
            dense, dense_seconds = painted(pipe, asked, first, size)
            bar.update()
            for setting in settings:
                with setting.applied(pipe) as handle:
                    pictures, seconds = painted(pipe, asked, first, size)
                    setting.token_steps = handle.trace.token_steps
                setting.speedups.append(dense_seconds / seconds)
                if repeat == 0:
                    pairs = zip(pictures, dense, strict=True)
                    setting.psnr += [min(psnr(ours, theirs), MAX_PSNR) for ours, theirs in pairs]
                bar.update()
    shared = {setting.name: setting.psnr for setting in settings if setting.way == "one shared set"}
    return [
        {
            "name": setting.name,
            "way": setting.way,
            "token_steps": setting.token_steps,
            "psnr": mean_interval(setting.psnr),
            "better_by": better_by(setting.psnr, shared[setting.name]),
            "speedup": statistics.median(setting.speedups),
        }
        for setting in settings
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--size", type=int, default=128, choices=(128, 256), help="of the pictures, in pixels")
    parser.add_argument("--repeats", type=int, default=2, help="runs of every batch, timed")
    a = parser.parse_args()
    pipe = ras_dit.load_embedded(size=a.size)
    pipe.set_progress_bar_config(disable=True)
    rows = compared(pipe, embedded_prompts(a.pictures), a.batch, a.size, a.repeats)
    for row in rows:
        print(
            f"{row['name']:<36} {row['way']:<20} T {row['token_steps']:5.2f}  {row['psnr'][0]:5.1f} dB "
            f"({row['better_by'][0]:+.1f})  {row['speedup']:.2f}x"
        )
    about = {"num_pictures": a.pictures, "batch": a.batch, "size": a.size, "steps": STEPS, "repeats": a.repeats}
    name = "batch_embedded" + ("" if a.size == 128 else f"_{a.size}")
    print("wrote", record.write(name, {**record.environment(), **about, "rows": rows}).name)


if __name__ == "__main__":
    main()
