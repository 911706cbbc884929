"""Functions that a pipeline calls with the same arguments in every step are called once while RAS is on."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import pytest
import torch
from diffusers import LuminaPipeline
from diffusers.pipelines.lumina import pipeline_lumina

import ras_dit
from families import lumina_next
from ras_dit import RASConfig
from ras_dit.seams import KeptResults
from tiny import REGION, run

TABLE = "get_2d_rotary_pos_embed_lumina"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What Lumina-Next's pipeline asks of the function that makes its rotary table."""
    original: Any = getattr(pipeline_lumina, TABLE)
    found: list[dict[str, Any]] = []

    @functools.wraps(original)
    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        found.append(kwargs)
        return original(*args, **kwargs)

    monkeypatch.setattr(pipeline_lumina, TABLE, watched)
    return found


def test_lumina_makes_its_table_once(asked: list[dict[str, Any]]) -> None:
    pipe, call = lumina_next.build(), lumina_next.call(batch=2)
    dense = run(pipe, **call)
    assert len(asked) == call["num_inference_steps"]
    with ras_dit.accelerate(pipe, RASConfig(sample_ratio=1.0)):
        asked.clear()
        assert torch.equal(run(pipe, **call), dense)
        assert torch.equal(run(pipe, **call), dense)
        assert len(asked) == 1
    with ras_dit.accelerate(pipe, REGION):
        run(pipe, **call)
        assert len(asked) == 2, "another session asks anew"
    asked.clear()
    assert torch.equal(run(pipe, **call), dense)
    assert len(asked) == call["num_inference_steps"]


def test_every_table_is_that_of_its_arguments(asked: list[dict[str, Any]]) -> None:
    """Above the default size there are two: `scaling_watershed` says from which step on the second is taken."""
    pipe = lumina_next.build()
    pipe.default_image_size = 32
    call = lumina_next.call(scaling_watershed=0.4)
    dense = run(pipe, **call)
    different = [kwargs for index, kwargs in enumerate(asked) if kwargs not in asked[:index]]
    assert len(different) == 2
    asked.clear()
    with ras_dit.accelerate(pipe, RASConfig(sample_ratio=1.0)):
        assert torch.equal(run(pipe, **call), dense)
    assert asked == different


def test_the_pipeline_stays_what_it_is() -> None:
    pipe, other = lumina_next.build(), lumina_next.build()
    signature, attributes = inspect.signature(pipe.__call__), sorted(vars(pipe))
    table, call = getattr(pipeline_lumina, TABLE), LuminaPipeline.__call__
    with ras_dit.accelerate(pipe, REGION):
        assert isinstance(pipe, LuminaPipeline)
        assert (type(pipe).__name__, type(pipe).__module__) == ("LuminaPipeline", LuminaPipeline.__module__)
        assert inspect.signature(pipe.__call__) == signature
        assert type(other) is LuminaPipeline
        assert LuminaPipeline.__call__ is call
        assert getattr(pipeline_lumina, TABLE) is table
    assert type(pipe) is LuminaPipeline
    assert sorted(vars(pipe)) == attributes


class Own(LuminaPipeline):
    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


class Recording(LuminaPipeline):
    __call__ = inspect.unwrap(LuminaPipeline.__call__)


class Inferring(LuminaPipeline):
    __call__ = torch.inference_mode()(inspect.unwrap(LuminaPipeline.__call__))


class Wrapped(LuminaPipeline):
    @functools.wraps(LuminaPipeline.__call__)
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return LuminaPipeline.__call__(self, *args, **kwargs)


@pytest.mark.parametrize("kind", [Own, Recording, Inferring, Wrapped])
def test_other_calls_are_left_alone(kind: type) -> None:
    pipe = lumina_next.build()
    pipe.__class__ = kind
    with ras_dit.accelerate(pipe, REGION):
        assert type(pipe) is kind
    assert type(pipe) is kind


def test_it_is_undone_where_enable_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = lumina_next.build()

    def fail(*_: Any) -> None:
        assert type(pipe) is not LuminaPipeline, "it was in place"
        raise MemoryError

    monkeypatch.setattr("ras_dit.session.watched_bar", fail)
    with pytest.raises(MemoryError):
        ras_dit.enable(pipe, REGION)
    assert type(pipe) is LuminaPipeline


def test_disable_in_the_middle_of_a_call(asked: list[dict[str, Any]]) -> None:
    pipe, call = lumina_next.build(), lumina_next.call()
    dense = run(pipe, **call)
    handle = ras_dit.enable(pipe, RASConfig(sample_ratio=1.0))
    step = pipe.scheduler.step
    asked.clear()

    def ending(*args: Any, **kwargs: Any) -> Any:
        if handle.is_enabled:
            handle.disable()
        return step(*args, **kwargs)

    pipe.scheduler.step = ending
    assert torch.equal(run(pipe, **call), dense)
    assert len(asked) == call["num_inference_steps"]
    assert type(pipe) is LuminaPipeline


def test_no_more_results_are_kept_than_needed(asked: list[dict[str, Any]]) -> None:
    pipe = lumina_next.build()
    kept = KeptResults(pipe, (TABLE,))
    function = type(pipe).__call__.__wrapped__.__globals__[TABLE]  # of the copy
    for size in (4, 6, 8, 8, 6, 4):
        assert function(16, size, size).shape == (size, size, 8)
    assert len(asked) == 4, "the first was given up for the third, so it is made again"
    kept.release()
    function(16, 4, 4)
    function(16, 4, 4)
    assert len(asked) == 6, "released, it asks every time"


@torch.no_grad()
def test_keys_of_one_rotary_table_are_not_attended_to_by_another() -> None:
    """With `scaling_watershed` the pipeline changes the table midway: the step that first sees it is computed whole."""
    pipe = lumina_next.build()
    call = lumina_next.call(height=6, width=8, scaling_watershed=0.3, num_inference_steps=10)
    with ras_dit.accelerate(pipe, RASConfig(sample_ratio=0.25, warmup_steps=2)) as handle:
        pipe(**call)
    kinds = [step.kind for step in handle.trace.steps]
    times = 1 - pipe.scheduler.timesteps / pipe.scheduler.config.num_train_timesteps
    switch = int((times >= 0.3).nonzero()[0])
    assert 2 < switch < 9
    expected = ["region"] * 10
    expected[0] = expected[1] = expected[switch] = "dense"
    assert kinds == expected
