"""What is peculiar to videos: a second transformer, given first frames, what the scheduler is shown of them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import ras_dit
from families import wan
from ras_dit import RASConfig, build_plan
from ras_dit.schedule import first_of_second


def test_a_second_transformer_begins_dense() -> None:
    """By the plan, so that nothing has to be said; keys and values of the first one are never read in it."""
    pipe = wan.build_two()
    with ras_dit.accelerate(pipe, RASConfig(sample_ratio=0.25, warmup_steps=2)) as handle:
        pipe(**wan.call())
    timesteps = pipe.scheduler.timesteps
    second = int((timesteps < 700).nonzero()[0])
    assert 3 < second < len(timesteps) - 1
    kinds = ["region"] * len(timesteps)
    kinds[0] = kinds[1] = kinds[second] = "dense"
    assert [step.kind for step in handle.trace.steps] == kinds
    assert handle.summary().notes == ()


def test_an_unplanned_change_of_the_transformer_is_dense_once() -> None:
    pipe = wan.build_two()
    timesteps: list[float] = []

    def change(pipe: object, index: int, timestep: torch.Tensor, values: dict[str, object]) -> dict[str, object]:
        timesteps.append(float(timestep))
        if index == 4:
            pipe.transformer, pipe.transformer_2 = pipe.transformer_2, pipe.transformer  # type: ignore[attr-defined]
        return values

    with ras_dit.accelerate(pipe, RASConfig(sample_ratio=0.25, warmup_steps=2)) as handle:
        pipe.register_to_config(boundary_ratio=None)
        with pytest.warns(ras_dit.RASWarning, match="began"):
            pipe(**wan.call(), callback_on_step_end=change)
        assert [step.kind[0] for step in handle.trace.steps] == list("ddrrrdrr")
        pipe.transformer, pipe.transformer_2 = pipe.transformer_2, pipe.transformer


def test_where_the_second_transformer_begins() -> None:
    scheduler = SimpleNamespace(
        timesteps=torch.tensor([1000.0, 900.0, 600.0, 300.0]), config=SimpleNamespace(num_train_timesteps=1000)
    )

    def begin(boundary: float | None, first: int = 0, second: object = "transformer") -> int | None:
        pipe = SimpleNamespace(config={"boundary_ratio": boundary}, transformer_2=second)
        return first_of_second(pipe, scheduler, first)

    assert begin(0.875) == 2
    assert begin(0.6) == 3
    assert begin(0.875, first=1) == 1
    assert begin(0.875, first=3) == 0
    assert begin(0.1) is None
    assert begin(None) is None
    assert begin(0.875, second=None) is None


def test_a_dense_step_besides_those_of_the_config() -> None:
    def kinds(config: RASConfig, dense_step: int) -> str:
        return "".join(step.kind[0] for step in build_plan(config, 8, 100, dense_step=dense_step))

    assert kinds(RASConfig(warmup_steps=2, skip_steps=(4, 6)), 4) == "ddrrdrsr"
    assert kinds(RASConfig(warmup_steps=2, refresh_steps=(5,)), 3) == "ddrdrdrr"
    assert kinds(RASConfig.reference(0.5, start_step=2, reset_steps=(6,)), 4) == "ddrrdrdr"
