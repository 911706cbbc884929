"""Reference mode against recorded trajectories of the authors' implementation (microsoft/RAS)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LuminaNextDiT2DModel, SD3Transformer2DModel
from safetensors.torch import load_file

import ras_dit
from families import lumina_next
from tiny import tiny_pipeline

GOLDENS = Path(__file__).parent / "goldens"
MANIFEST = json.loads((GOLDENS / "manifest.json").read_text())
CONFIGS = list(MANIFEST["configs"])
TOLERANCE = 2e-4  # max-abs; replays in float64 differ by 3e-5, RAS from dense by 5-41 %


def reference_config(ras: dict[str, Any]) -> ras_dit.RASConfig:
    resets = tuple(int(step) for step in ras["error_reset_steps"].split(",") if int(step) > 0)
    return ras_dit.RASConfig.reference(
        sample_ratio=ras["sample_ratio"],
        start_step=ras["scheduler_start_step"],
        end_step=ras["scheduler_end_step"],
        reset_steps=resets,
        metric=ras["metric"],
        high_ratio=ras["high_ratio"],
        starvation_scale=ras["starvation_scale"],
        skip_num_step=ras["skip_num_step"],
        skip_num_step_length=ras["skip_num_step_length"],
    )


def golden_pipeline(config: dict[str, Any]) -> Any:
    model = MANIFEST["models"][config["model"]]
    classes = {"sd3": (SD3Transformer2DModel, tiny_pipeline), "lumina": (LuminaNextDiT2DModel, lumina_next.build)}
    transformer_class, build = classes[config["kind"]]
    transformer = transformer_class(**model["config"]).eval()
    transformer.load_state_dict(load_file(GOLDENS / model["weights"]))
    outline = build()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=config["scheduler_shift"])
    pipe = type(outline)(**{**outline.components, "transformer": transformer, "scheduler": scheduler})
    pipe.set_progress_bar_config(disable=True)
    pipe.register_modules(transformer=transformer)
    return pipe


def call_of(config: dict[str, Any], golden: dict[str, torch.Tensor]) -> dict[str, Any]:
    given = {key.removeprefix("input."): value for key, value in golden.items() if key.startswith("input.")}
    return {
        **given,
        "height": config["ras"]["height"],
        "width": config["ras"]["width"],
        "num_inference_steps": config["ras"]["num_inference_steps"],
        "guidance_scale": config["guidance_scale"],
        "output_type": "latent",
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_recorded_trajectory(name: str) -> None:
    config = MANIFEST["configs"][name]
    golden = load_file(GOLDENS / config["file"])
    pipe = golden_pipeline(config)
    seen: list[torch.Tensor] = []

    def keep(_pipe: Any, _index: int, _t: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append(tensors["latents"].clone())
        return tensors

    call = call_of(config, golden)
    dense = pipe(**call).images
    assert (dense - golden["dense.latents.final"]).abs().max() < TOLERANCE
    with ras_dit.accelerate(pipe, reference_config(config["ras"])) as handle:
        final = pipe(**call, callback_on_step_end=keep).images
    offsets = golden["active.offsets"].tolist()
    for index, step in enumerate(handle.trace.steps):
        expected = golden["active.flat"][offsets[index] : offsets[index + 1]]
        active = [] if step.active is None else step.active[0].tolist()
        assert active == sorted(expected.tolist()), f"active set of step {index}"
    latents, sigmas = golden["input.latents"], golden["sigmas"]
    for index, got in enumerate(seen):
        latents = latents + (sigmas[index + 1] - sigmas[index]) * golden["model_output"][index : index + 1]
        assert (got - latents).abs().max() < TOLERANCE, f"latents after step {index}"
    assert (final - golden["latents.final"]).abs().max() < TOLERANCE
    assert (dense - final).abs().max() > 100 * TOLERANCE, "the trajectory differs from the dense one"
