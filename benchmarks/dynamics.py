"""How noise moves along a dense run: ``python -m benchmarks.dynamics`` writes
``benchmarks/results/dynamics_embedded.json``. It says why plans are dense early, why forecasts begin late, and what a
ranking can gain.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

import ras_dit
from benchmarks import record
from ras_dit.arena import AdamsBashforth2Scheduler
from ras_dit.embedded import GUIDANCE_SCALE, MAX_SEQUENCE_LENGTH, embedded_scenes
from ras_dit.geometry import TokenGrid
from ras_dit.importance import displacement_metric
from ras_dit.observed import observing

SHARE = 0.25


def guided_noise(pipe: Any, num_pictures: int, num_steps: int) -> tuple[torch.Tensor, list[float]]:
    """Guided noise of a second-order dense run [S, B, C, H, W] and the S + 1 noise levels."""
    scheduler = AdamsBashforth2Scheduler.from_config(pipe.scheduler.config)
    seen: list[torch.Tensor] = []
    scheduler.step = observing(scheduler.step, lambda noise, sample: seen.append(noise.clone()))
    pipe.scheduler = scheduler
    scenes = embedded_scenes(num_pictures)
    pipe(
        prompt=[scene.prompt for scene in scenes],
        generator=[torch.Generator().manual_seed(9000 + index) for index in range(num_pictures)],
        num_inference_steps=num_steps,
        guidance_scale=GUIDANCE_SCALE,
        max_sequence_length=MAX_SEQUENCE_LENGTH,
        output_type="latent",
    )
    return torch.stack(seen).double(), scheduler.sigmas.tolist()


def held_by(change: torch.Tensor, score: torch.Tensor) -> float:
    """Share of the squared change [B, N] that lies in the quarter of the tokens with the highest score."""
    chosen = score.topk(round(SHARE * change.shape[1]), dim=1).indices
    return float((change.gather(1, chosen).sum(1) / change.sum(1)).mean())


def at_step(noise: torch.Tensor, sigmas: list[float], index: int, gap: int, grid: TokenGrid) -> dict[str, float]:
    """What is known at a step, from it and the one before, of the noise of the steps after it.

    Args:
        noise: [S, B, C, H, W].
        sigmas: S + 1 noise levels.
        index: of the step.
        gap: steps between the two that a slope is taken from, and over which it is followed.
        grid: of the tokens.
    """
    last, before, after = noise[index], noise[index - gap], noise[index + gap]
    line = (last - before) * (sigmas[index + gap] - sigmas[index]) / (sigmas[index] - sigmas[index - gap])
    change = after - last
    tokens = [grid.patchify(value).square().sum(-1) for value in (change, line)]
    spread = displacement_metric(last, grid, "std")
    return {
        "sigma": sigmas[index],
        "change": float(change.norm() / last.norm()),
        "best_damping": float((line * change).sum() / line.square().sum()),
        "held_by_best": held_by(tokens[0], tokens[0]),
        "held_by_predicted_error": held_by(tokens[0], tokens[1]),
        "held_by_low_std": held_by(tokens[0], -spread),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=16, help="of the measurement, one prompt each")
    parser.add_argument("--steps", type=int, default=28, help="denoising steps")
    parser.add_argument("--gap", type=int, default=2, help="evaluations between two that are compared")
    a = parser.parse_args()
    pipe = ras_dit.load_embedded()
    pipe.set_progress_bar_config(disable=True)
    noise, sigmas = guided_noise(pipe, a.pictures, a.steps)
    grid = TokenGrid.of_latents(noise[0], pipe.transformer.config.patch_size)
    rows = [{"step": i, **at_step(noise, sigmas, i, a.gap, grid)} for i in range(a.gap, a.steps - a.gap)]
    result = {"num_pictures": a.pictures, "gap": a.gap, "share": SHARE, "rows": rows}
    print("wrote", record.write("dynamics_embedded", {**record.environment(), **result}).name)


if __name__ == "__main__":
    main()
