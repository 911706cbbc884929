"""What a region of interest is worth where only a part of a picture may change: ``python -m benchmarks.inpainting``
writes ``benchmarks/results/inpainting_embedded.json``.

The embedded model paints pictures, then paints something else into a box of each: after every step the latents outside
of the box are put back to the first picture, noised for the step (what diffusers' inpainting pipelines do; that of
Stable Diffusion 3 takes no model of 8 latent channels). Methods are compared inside the box alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm

import ras_dit
from benchmarks import record
from ras_dit import RASConfig
from ras_dit.arena import Method, applied
from ras_dit.arena.metrics import MAX_PSNR, better_by, mean_interval
from ras_dit.embedded import GUIDANCE_SCALE, MAX_SEQUENCE_LENGTH, embedded_prompts
from ras_dit.quality import psnr

CALL = {"guidance_scale": GUIDANCE_SCALE, "max_sequence_length": MAX_SEQUENCE_LENGTH, "output_type": "np"}
STEPS, BATCH, SIZE = 28, 8, 128
PIXELS = (SIZE, SIZE)
AGAINST = "preset balanced"
ALL_INSIDE = 0.999
"""Ratio of a step that computes every token of the region, however large that is."""


@dataclass(frozen=True)
class Task:
    """A batch to paint.

    Attributes:
        prompts: what to paint into the box.
        known: latents of the first pictures [B, C, H, W].
        noise: of the run [B, C, H, W].
        box: rows and columns of the box in pixels: top, bottom, left, right.
    """

    prompts: list[str]
    known: torch.Tensor
    noise: torch.Tensor
    box: tuple[int, int, int, int]

    def mask(self, size: tuple[int, int]) -> torch.Tensor:
        """The box at a size [H, W], True inside."""
        top, bottom, left, right = self.box
        mask = torch.zeros(SIZE, SIZE)
        mask[top:bottom, left:right] = 1
        return functional.adaptive_max_pool2d(mask[None], size)[0] > 0

    def paint(self, pipe: Any, steps: int) -> np.ndarray:
        """Pictures [B, H, W, 3] in [0, 1]."""
        inside = self.mask((self.noise.shape[-2], self.noise.shape[-1]))

        def put_back(pipe: Any, index: int, timestep: Any, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            sigma = float(pipe.scheduler.sigmas[index + 1])
            outside = (1 - sigma) * self.known + sigma * self.noise
            return {"latents": torch.where(inside, given["latents"], outside)}

        call = {**CALL, "num_inference_steps": steps, "callback_on_step_end": put_back}
        pictures: np.ndarray = pipe(prompt=self.prompts, latents=self.noise.clone(), **call).images
        return pictures

    def psnr(self, pictures: np.ndarray, dense: np.ndarray) -> list[float]:
        """Nearness inside the box in dB, of 8-bit pictures."""
        top, bottom, left, right = self.box
        boxes = [np.round(255 * many[:, top:bottom, left:right]).astype(np.uint8) for many in (pictures, dense)]
        return [min(psnr(ours, theirs), MAX_PSNR) for ours, theirs in zip(*boxes, strict=True)]


@torch.no_grad()
def tasks(pipe: Any, num_pictures: int, side: int) -> list[Task]:
    """Batches of pictures with a box of this side each, in pixels."""
    prompts, draw = embedded_prompts(2 * num_pictures), torch.Generator().manual_seed(1)
    found = []
    for start in range(0, num_pictures, BATCH):
        indices = range(start, min(start + BATCH, num_pictures))
        generators = [torch.Generator().manual_seed(500 + index) for index in indices]
        first = pipe(
            prompt=[prompts[index] for index in indices], generator=generators, num_inference_steps=STEPS, **CALL
        )
        pictures = torch.from_numpy(first.images).movedim(-1, 1) * 2 - 1
        latents = pipe.vae.encode(pictures).latent_dist.mode()
        known = (latents - (pipe.vae.config.shift_factor or 0)) * pipe.vae.config.scaling_factor
        noise = torch.cat(
            [
                torch.randn(1, *known.shape[1:], generator=torch.Generator().manual_seed(900 + index))
                for index in indices
            ]
        )
        top, left = (8 * int(torch.randint(0, (SIZE - side) // 8 + 1, (1,), generator=draw)) for _ in range(2))
        asked = [prompts[num_pictures + index] for index in indices]
        found.append(Task(asked, known, noise, (top, top + side, left, left + side)))
    return found


def methods() -> dict[str, Callable[[Task], Method]]:
    """Name -> the method for a task."""

    def plain(method: Method) -> Callable[[Task], Method]:
        return lambda task: method

    def inside(
        name: str, dense: Sequence[int], region: Sequence[int] | None = None, base: RASConfig | None = None
    ) -> Any:
        ratios = [1.0 if i in dense else ALL_INSIDE if region is None or i in region else 0.0 for i in range(STEPS)]
        config = (base or RASConfig()).replace(step_ratios=tuple(ratios))
        return lambda task: Method(name, "ras", config=config.replace(region_of_interest=task.mask(PIXELS)))

    def preset(name: str, **options: Any) -> RASConfig:
        return ras_dit.PRESETS[name].replace(**options)

    found = {f"Euler, {n} steps": plain(Method(f"Euler, {n} steps", "dense", n)) for n in (17, 14, 11, 9, 6)}
    found |= {f"preset {n}": plain(Method(n, "ras", config=preset(n))) for n in ("quality", "balanced", "fast")}
    found["preset regions"] = plain(Method("regions", "ras", config=preset("regions")))
    found["preset regions, inside"] = lambda task: Method(
        "regions inside", "ras", config=preset("regions", region_of_interest=task.mask(PIXELS))
    )
    found["all inside, the paper's dense steps"] = inside("paper", (0, 1, 2, 3, 12, 20))
    preset_quality = preset("quality")
    quality = [i for i, ratio in enumerate(preset_quality.step_ratios) if ratio == 1]
    for name, dense in {
        "quality's steps, every second one inside": (0, 1, 2, 4, 7, 11, 15, 19, 23),
        "quality's steps, five dense": (0, 2, 5, 11, 19),
    }.items():
        found[name] = inside(name, dense, [i for i in quality if i not in dense], preset_quality)
    return found


def compared(pipe: Any, known: Sequence[Task], chosen: dict[str, Callable[[Task], Method]]) -> list[dict[str, Any]]:
    """Every method on every task, against the dense run.

    Returns:
        Rows with ``name``, ``token_steps``, ``psnr``, and ``better_by`` (the difference to `AGAINST` picture by
        picture, None where that was not painted): means with 95 % bootstrap intervals.
    """
    values: dict[str, list[float]] = {name: [] for name in chosen}
    token_steps = dict.fromkeys(chosen, 0.0)
    with tqdm(total=len(known) * (1 + len(chosen)), desc="inpainting", unit="call") as bar:
        for task in known:
            dense = task.paint(pipe, STEPS)
            bar.update()
            for name, make in chosen.items():
                method = make(task)
                with applied(pipe, method) as handle:
                    pictures = task.paint(pipe, method.steps)
                    counted = method.steps if handle is None else handle.trace.token_steps
                token_steps[name] += counted / len(known)
                values[name] += task.psnr(pictures, dense)
                bar.update()
    return [
        {
            "name": name,
            "token_steps": token_steps[name],
            "psnr": mean_interval(values[name]),
            "better_by": better_by(values[name], values[AGAINST]) if AGAINST in values else None,
        }
        for name in chosen
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=16, help="of the measurement, one prompt each")
    parser.add_argument("--side", type=int, default=64, help="of the box, in pixels, a multiple of 8")
    parser.add_argument("--only", action="append", help="a method by name, to look at: nothing is written then")
    a = parser.parse_args()
    pipe = ras_dit.load_embedded()
    pipe.set_progress_bar_config(disable=True)
    chosen = {name: make for name, make in methods().items() if not a.only or name in a.only}
    rows = compared(pipe, tasks(pipe, a.pictures, a.side), chosen)
    for row in rows:
        print(f"{row['name']:<44} T {row['token_steps']:5.2f}  {row['psnr'][0]:5.1f} dB")
    if not a.only:
        about = {"num_pictures": a.pictures, "side": a.side, "steps": STEPS, "guidance_scale": GUIDANCE_SCALE}
        print("wrote", record.write("inpainting_embedded", {**record.environment(), **about, "rows": rows}).name)


if __name__ == "__main__":
    main()
