"""RAS on the model in the box: a trained pipeline with its text encoders and VAE, called as users call it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import ras_dit
from ras_dit import RASConfig
from ras_dit.embedded import embedded_prompts
from ras_dit.quality import psnr

STEPS = 14
PAPER = {"warmup_steps": 2, "refresh_steps": (6, 10)}


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe = ras_dit.load_embedded()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def paint(pipe: Any, num_prompts: int = 2, **changes: Any) -> np.ndarray:
    """Pictures [B, H, W, 3] in [0, 1]."""
    generators = [torch.Generator().manual_seed(i) for i in range(num_prompts)]
    call = {
        "prompt": embedded_prompts(num_prompts),
        "generator": generators,
        "num_inference_steps": STEPS,
        "guidance_scale": 4.0,
        "max_sequence_length": 1,
        "output_type": "np",
    }
    return pipe(**{**call, **changes}).images


def mean_psnr(images: np.ndarray, dense: np.ndarray) -> float:
    return float(np.mean([psnr(a, b) for a, b in zip(images, dense, strict=True)]))


def test_ras_is_close_to_dense_and_better_than_chance(pipe: Any) -> None:
    dense = paint(pipe)
    with ras_dit.accelerate(pipe, RASConfig(sample_ratio=1.0)):
        assert np.array_equal(paint(pipe), dense)
    scores = {}
    for importance in ("error", "random"):
        config = RASConfig(sample_ratio=0.25, importance=importance, **PAPER)  # type: ignore[arg-type]
        with ras_dit.accelerate(pipe, config) as handle:
            scores[importance] = mean_psnr(paint(pipe), dense)
        assert handle.trace.token_steps == pytest.approx(4 + 10 * 0.25)
    reference = RASConfig.reference(0.25, start_step=2, reset_steps=(6, 10), high_ratio=0.3, starvation_scale=1.0)
    with ras_dit.accelerate(pipe, reference):
        scores["authors"] = mean_psnr(paint(pipe), dense)
    assert scores["error"] > 20
    assert scores["error"] > scores["random"] + 0.5
    assert scores["error"] > scores["authors"] + 0.5
    assert np.array_equal(paint(pipe), dense)


def test_images_per_prompt_have_active_sets_of_their_own(pipe: Any) -> None:
    call = {
        "prompt": "a fox in the snow",
        "num_images_per_prompt": 2,
        "num_inference_steps": 6,
        "max_sequence_length": 1,
        "output_type": "np",
    }
    with ras_dit.accelerate(pipe, RASConfig(sample_ratio=0.25, warmup_steps=2)) as handle:
        images = pipe(**call, generator=torch.Generator().manual_seed(0)).images
    assert images.shape == (2, 128, 128, 3)
    active = handle.trace.steps[3].active
    assert active is not None
    assert active.shape == (2, 64)
    assert not torch.equal(active[0], active[1])


@pytest.mark.parametrize(("height", "width"), [(96, 160), (160, 96)])
def test_other_shapes(pipe: Any, height: int, width: int) -> None:
    call = {"height": height, "width": width, "num_inference_steps": 6, "num_prompts": 1}
    dense = paint(pipe, **call)
    with ras_dit.accelerate(pipe, preset="balanced") as handle:
        images = paint(pipe, **call)
    assert images.shape == (1, height, width, 3)
    assert not np.array_equal(images, dense)
    grid = handle.trace.grid
    assert grid is not None
    assert (grid.height, grid.width) == (height // 8, width // 8)
    assert handle.trace.heatmap().size[0] == (512 if width > height else round(512 * width / height))
    plan = handle.plan(6, height, width, max_sequence_length=1)
    assert [step.kind for step in plan] == [step.kind for step in handle.trace.steps]


def test_default_arguments_work_too(pipe: Any) -> None:
    with ras_dit.accelerate(pipe, preset="fast") as handle:
        image = pipe("a fox in the snow", num_inference_steps=5).images[0]
    assert image.size == (128, 128)
    assert handle.trace.num_tokens == 256


FLOORS = {"quality": 43, "regions": 25, "balanced": 25, "fast": 21, "regions_fast": 29, "regions_faster": 20}
"""PSNR to the dense picture in dB: some 3 dB below what two pictures of 28 steps had."""


def test_presets_come_as_near_to_dense_as_they_did(pipe: Any) -> None:
    dense, scores = paint(pipe, num_inference_steps=28), {}
    for name in FLOORS:
        with ras_dit.accelerate(pipe, preset=name):
            scores[name] = mean_psnr(paint(pipe, num_inference_steps=28), dense)
    assert {name: score for name, score in scores.items() if score < FLOORS[name]} == {}
    assert scores["quality"] > scores["balanced"] > scores["fast"]
    assert scores["quality"] > scores["regions_fast"] > scores["regions_faster"]
