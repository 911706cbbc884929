"""Quality per compute on the embedded model: every method from the same noise, against dense 28 and a converged run.

``python -m benchmarks.quality`` writes ``benchmarks/results/quality_embedded.json``.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from tqdm import tqdm

import ras_dit
from benchmarks import record
from benchmarks.cases import paper_schedule
from ras_dit import PRESETS, RASConfig
from ras_dit.embedded import GUIDANCE_SCALE, MAX_SEQUENCE_LENGTH, embedded_prompts
from ras_dit.quality import psnr, ssim

STEPS, CONVERGED_STEPS = 28, 200
RATIOS = (0.5, 0.25, 0.125)


def methods() -> dict[str, tuple[RASConfig | None, int, str]]:
    """Name -> (config or None for dense, steps, solver)."""
    rows: dict[str, tuple[RASConfig | None, int, str]] = {}
    for steps in (20, 17, 14, 12, 9):
        rows[f"dense, Euler, {steps} steps"] = (None, steps, "euler")
        rows[f"dense, UniPC order 2, {steps} steps"] = (None, steps, "unipc")
    for ratio in RATIOS:
        paper = paper_schedule(ratio)
        reference = RASConfig.reference(ratio, reset_steps=(12, 20), high_ratio=0.3, starvation_scale=1.0)
        rows[f"the authors' settings, {ratio}"] = (reference, STEPS, "euler")
        for importance in ("random", "round_robin", "std", "error"):
            rows[f"{importance}, {ratio}"] = (paper.replace(importance=importance), STEPS, "euler")
    balanced = PRESETS["balanced"]
    for name, changes in {
        "random tokens": {"importance": "random"},
        "order 1, damping 0.5": {"forecast_order": 1},
        "order 1, damping 0.5, midpoint": {"forecast_order": 1, "forecast_midpoint": True},
        "warm-up 0.15": {"warmup_steps": 0.15},
        "dense every 3": {"refresh_every": 3},
        "dense every 5": {"refresh_every": 5},
        "the cache in float8_e4m3fn": {"kv_cache_dtype": "float8_e4m3fn"},
        "the cache in bfloat16": {"kv_cache_dtype": "bfloat16"},
        "half of the layers keep the cache": {"kv_cache_layers": 0.5},
        "a quarter of the layers keeps it": {"kv_cache_layers": 0.25},
    }.items():
        rows[f"balanced, but {name}"] = (balanced.replace(**changes), STEPS, "euler")
    for name, preset in PRESETS.items():
        rows[f"preset {name}"] = (preset, STEPS, "euler")
    return rows


def paint(
    pipe: Any, prompts: list[str], config: RASConfig | None, steps: int, solver: str
) -> tuple[torch.Tensor, float]:
    """Pictures [B, 3, H, W] in [0, 1] from the seed that all methods share, and their token-steps T."""
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    pipe.scheduler = (
        UniPCMultistepScheduler(**flow) if solver == "unipc" else FlowMatchEulerDiscreteScheduler(shift=3.0)
    )
    call = {
        "prompt": prompts,
        "num_inference_steps": steps,
        "guidance_scale": GUIDANCE_SCALE,
        "max_sequence_length": MAX_SEQUENCE_LENGTH,
        "output_type": "pt",
        "generator": [torch.Generator().manual_seed(1000 + i) for i in range(len(prompts))],
    }
    if config is None:
        return pipe(**call).images, float(steps)
    with ras_dit.accelerate(pipe, config) as handle:
        images = pipe(**call).images
    return images, handle.trace.token_steps


def interval(values: list[float]) -> list[float]:
    """Mean and the half-width of its 95 % interval (normal approximation)."""
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
    return [round(mean, 3), round(1.96 * math.sqrt(variance / len(values)), 3)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    pipe = ras_dit.load_embedded(device=arguments.device)
    pipe.set_progress_bar_config(disable=True)
    prompts = embedded_prompts(arguments.images)
    batches = [prompts[i : i + arguments.batch] for i in range(0, len(prompts), arguments.batch)]

    def all_images(config: RASConfig | None, steps: int, solver: str) -> tuple[torch.Tensor, float]:
        results = [paint(pipe, batch, config, steps, solver) for batch in batches]
        return torch.cat([images for images, _ in results]).float().clamp(0, 1), results[0][1]

    converged, _ = all_images(None, CONVERGED_STEPS, "euler")
    dense, _ = all_images(None, STEPS, "euler")
    rows = [_row(f"dense, Euler, {STEPS} steps", None, float(STEPS), dense, dense, converged)]
    for name, (config, steps, solver) in tqdm(methods().items(), desc="methods"):
        images, token_steps = all_images(config, steps, solver)
        rows.append(_row(name, config, token_steps, images, dense, converged))
    rows.sort(key=lambda row: (-row["token_steps"], row["name"]))
    for row in rows:
        print(f"{row['name']:<44} T {row['token_steps']:6.2f}  {row['psnr_dense']}  {row['psnr_converged']}")
    setting = {
        "num_images": len(prompts),
        "guidance": GUIDANCE_SCALE,
        "steps": STEPS,
        "converged_steps": CONVERGED_STEPS,
    }
    print("wrote", record.write("quality_embedded", {**record.environment(), **setting, "rows": rows}).name)


def _row(
    name: str,
    config: RASConfig | None,
    token_steps: float,
    images: torch.Tensor,
    dense: torch.Tensor,
    converged: torch.Tensor,
) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "config": config and config.to_dict(), "token_steps": token_steps}
    for target, other in (("dense", dense), ("converged", converged)):
        if images is other:
            row |= {f"psnr_{target}": None, f"ssim_{target}": None}
            continue
        pairs = list(zip(images, other, strict=True))
        row[f"psnr_{target}"] = interval([psnr(a, b) for a, b in pairs])
        row[f"ssim_{target}"] = interval([ssim(a, b) for a, b in pairs])
    return row


if __name__ == "__main__":
    main()
