"""RAS comes out of a pipeline whatever was wrapped around it in the meantime, and whichever way it is asked to."""

from __future__ import annotations

import copy
import functools
import warnings
from typing import Any

import pytest
import torch
from accelerate import cpu_offload_with_hook
from accelerate.hooks import remove_hook_from_module
from diffusers import FirstBlockCacheConfig

import ras_dit
from checks import state_of
from families import wan
from ras_dit.seams import PatchedMethod
from tiny import REGION, inputs, run, tiny_pipeline, tiny_transformer

CPU = torch.device("cpu")
SKIPPING = REGION.replace(skip_steps=(5,))
OFFLOAD = {"onload_device": CPU, "offload_device": CPU}


def expected() -> tuple[torch.Tensor, torch.Tensor]:
    pipe = tiny_pipeline()
    dense = run(pipe, **inputs())
    with ras_dit.accelerate(pipe, SKIPPING):
        return dense, run(pipe, **inputs())


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_group_offload_around_a_transformer_whose_steps_are_skipped(kind: str) -> None:
    dense, fast = expected()
    pipe = tiny_pipeline()
    handle = ras_dit.enable(pipe, SKIPPING)
    groups = 1 if kind == "block_level" else None
    pipe.transformer.enable_group_offload(**OFFLOAD, offload_type=kind, num_blocks_per_group=groups)
    for _ in range(2):
        assert torch.equal(run(pipe, **inputs()), fast)
    handle.disable()
    assert torch.equal(run(pipe, **inputs()), dense)
    for _ in range(2):
        handle = ras_dit.enable(pipe, SKIPPING)
        assert torch.equal(run(pipe, **inputs()), fast)
        handle.disable()
    assert torch.equal(run(pipe, **inputs()), dense)


@pytest.mark.parametrize("runs", [0, 1])
def test_an_offload_hook_that_came_after_ras_stays_where_it_is(runs: int) -> None:
    dense, fast = expected()
    pipe = tiny_pipeline()
    handle = ras_dit.enable(pipe, SKIPPING)
    cpu_offload_with_hook(pipe.transformer, CPU)
    hooked = vars(pipe.transformer)["forward"]
    handle.disable()
    for _ in range(2):
        handle = ras_dit.enable(pipe, SKIPPING)
        for _ in range(runs):
            assert torch.equal(run(pipe, **inputs()), fast)
        handle.disable()
        assert vars(pipe.transformer)["forward"] is hooked
    assert torch.equal(run(pipe, **inputs()), dense)
    remove_hook_from_module(pipe.transformer)
    assert pipe.transformer.forward.__func__ is type(pipe.transformer).forward


def test_a_wrapper_that_is_lost_in_the_middle_of_a_run_is_put_back() -> None:
    """diffusers' group offload with streams takes a hook out in the first call, and puts back what it found."""
    dense, fast = expected()
    pipe = tiny_pipeline()

    def lose(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == 0:
            del pipe.transformer.forward
        return tensors

    with ras_dit.accelerate(pipe, SKIPPING) as handle:
        assert torch.equal(run(pipe, **inputs(), callback_on_step_end=lose), fast)
        assert handle.trace.steps[5].kind == "skip"
    assert torch.equal(run(pipe, **inputs()), dense)


@pytest.mark.parametrize("name", ["progress_bar", "scheduler.step"])
def test_a_method_that_somebody_wraps_around_ours(name: str) -> None:
    """`functools.wraps` copies the attributes of what it wraps."""
    dense, fast = expected()
    pipe = tiny_pipeline()
    owner = pipe if name == "progress_bar" else pipe.scheduler
    method = name.rpartition(".")[2]
    handle = ras_dit.enable(pipe, SKIPPING)
    ours, calls = getattr(owner, method), []

    @functools.wraps(ours)
    def around(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return ours(*args, **kwargs)

    setattr(owner, method, around)
    assert torch.equal(run(pipe, **inputs()), fast)
    assert getattr(owner, method) is around, "it is not wrapped again"
    handle.disable()
    assert getattr(owner, method) is around
    assert torch.equal(run(pipe, **inputs()), dense)
    with ras_dit.accelerate(pipe, SKIPPING):
        assert torch.equal(run(pipe, **inputs()), fast)
    assert getattr(owner, method) is around
    assert len(calls) == (3 if name == "progress_bar" else 30)


def test_wrappers_that_lie_on_each_other_come_out_in_any_order() -> None:
    class Owner:
        def method(self) -> str:
            return "plain"

    def saying(word: str) -> Any:
        return lambda original: lambda: f"{word} {original()}"

    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0), (0, 2, 1), (2, 0, 1)):
        owner = Owner()
        patches = [PatchedMethod(owner, "method", saying(word)) for word in ("a", "b", "c")]
        assert owner.method() == "c b a plain"
        for patch in patches:
            patch.ensure()
        assert owner.method() == "c b a plain", "none was lost"
        left = ["c", "b", "a"]
        for index in order:
            patches[index].release()
            left.remove("abc"[index])
            assert owner.method() == " ".join([*left, "plain"])
        assert "method" not in vars(owner)
    owner = Owner()
    first, second = PatchedMethod(owner, "method", saying("a")), PatchedMethod(owner, "method", saying("b"))
    del owner.method  # somebody put the plain one back
    for patch in (first, second):
        patch.ensure()
    assert owner.method() == "b a plain"
    first.release()
    second.release()
    assert "method" not in vars(owner)


def test_after_the_transformer_was_replaced_ras_is_disabled_and_enabled_as_the_note_says() -> None:
    dense, fast = expected()
    pipe = tiny_pipeline()
    first = pipe.transformer
    run(pipe, **inputs())
    before = [state_of(owner) for owner in (first, pipe, pipe.scheduler)]
    handle = ras_dit.enable(pipe, SKIPPING)
    assert state_of(first) != before[0]
    pipe.transformer = tiny_transformer(0)
    with pytest.warns(ras_dit.RASWarning, match="Disable and enable again"):
        assert torch.equal(run(pipe, **inputs()), dense)
    with pytest.raises(ValueError, match="already enabled"):
        ras_dit.enable(pipe, SKIPPING)
    ras_dit.disable(pipe)
    assert not handle.is_enabled
    assert [state_of(owner) for owner in (first, pipe, pipe.scheduler)] == before
    with pytest.raises(ValueError, match="not enabled"):
        ras_dit.disable(pipe)
    with ras_dit.accelerate(pipe, SKIPPING):
        assert torch.equal(run(pipe, **inputs()), fast)
    assert torch.equal(run(pipe, **inputs()), dense)


def test_a_copy_of_an_enabled_pipeline_is_a_pipeline_with_the_same_transformer() -> None:
    pipe = tiny_pipeline()
    handle = ras_dit.enable(pipe, SKIPPING)
    twin = copy.copy(pipe)
    with pytest.raises(ValueError, match="already enabled"):
        ras_dit.enable(twin, SKIPPING)
    handle.disable()
    with pytest.raises(ValueError, match="not enabled"):
        ras_dit.disable(twin)
    ras_dit.enable(twin, SKIPPING)
    ras_dit.disable(twin)
    other = tiny_pipeline()
    first, second = ras_dit.enable(pipe, SKIPPING), ras_dit.enable(other, SKIPPING)
    pipe.transformer = other.transformer
    ras_dit.disable(pipe)
    assert (first.is_enabled, second.is_enabled) == (False, True), "its own, not that of the transformer it has now"
    ras_dit.disable(pipe)
    assert not second.is_enabled


def test_a_warning_that_is_an_error_leaves_the_pipeline_as_it_was() -> None:
    pipe = tiny_pipeline()
    dense, before = run(pipe, **inputs()), [dict(vars(owner)) for owner in (pipe, pipe.scheduler)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ras_dit.SmallGainWarning):
            ras_dit.enable(pipe, REGION)
        with pytest.raises(ras_dit.SmallGainWarning), ras_dit.accelerate(pipe, REGION):
            pytest.fail("the block is not entered")
    assert [dict(vars(owner)).keys() for owner in (pipe, pipe.scheduler)] == [each.keys() for each in before]
    assert torch.equal(run(pipe, **inputs()), dense)
    ras_dit.enable(pipe, REGION).disable()


@pytest.mark.parametrize("is_in_place", [True, False])
def test_a_transformer_that_is_compiled_as_a_whole_after_enable_is_refused(is_in_place: bool) -> None:
    pipe = tiny_pipeline()
    dense, plain = run(pipe, **inputs()), pipe.transformer
    handle = ras_dit.enable(pipe, REGION)
    if is_in_place:
        plain.compile(backend="eager")
    else:
        pipe.transformer = torch.compile(plain, backend="eager")
    with pytest.raises(ValueError, match="compiled as a whole"):
        run(pipe, **inputs())
    handle.disable()
    plain._compiled_call_impl, pipe.transformer = None, plain
    assert torch.equal(run(pipe, **inputs()), dense)


def test_a_second_transformer_is_looked_at_as_the_first_is() -> None:
    pipe = wan.build_two()
    handle = ras_dit.enable(pipe, REGION)
    pipe.transformer_2.compile(backend="eager")
    with pytest.raises(ValueError, match="compiled as a whole"):
        pipe(**wan.call())
    handle.disable()
    with pytest.raises(ValueError, match="compiled as a whole"):
        ras_dit.enable(pipe, REGION)


def test_a_step_cache_on_the_second_transformer_is_refused() -> None:
    pipe = wan.build_two()
    with ras_dit.accelerate(pipe, REGION):
        pipe.transformer_2.enable_cache(FirstBlockCacheConfig(threshold=0.05))
        with pytest.raises(ValueError, match="cache"):
            pipe(**wan.call())


def test_what_the_second_transformer_cannot_do_makes_the_run_dense() -> None:
    pipe = wan.build_two()
    dense = pipe(**wan.call()).frames
    with ras_dit.accelerate(pipe, REGION) as handle:
        pipe.transformer_2.hf_device_map = {"blocks.0": "cuda:0", "blocks.1": "cuda:1"}
        with pytest.warns(ras_dit.RASWarning, match="several devices"):
            assert torch.equal(pipe(**wan.call()).frames, dense)
    assert {step.kind for step in handle.trace.steps} == {"dense"}


def test_disabled_in_a_callback_a_run_says_where_it_ended() -> None:
    pipe = tiny_pipeline()
    handle = ras_dit.enable(pipe, REGION)

    def disable(_pipe: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == 5:
            handle.disable()
        return tensors

    run(pipe, **inputs(callback_on_step_end=disable))
    assert handle.summary().notes == ("The run was cut short after 6 of 10 evaluations.",)
    assert len(handle.trace.steps) == 6
    assert all(step.seconds is not None for step in handle.trace.steps)


def test_a_handle_is_found_again_and_ends_with_its_block() -> None:
    pipe = tiny_pipeline()
    before = state_of(pipe.transformer)
    assert ras_dit.handle_of(pipe) is None
    with ras_dit.enable(pipe, REGION) as handle:
        assert ras_dit.handle_of(pipe) is handle
        run(pipe, **inputs())
        assert ras_dit.handle_of(pipe).summary() == handle.summary()
    assert not handle.is_enabled
    assert ras_dit.handle_of(pipe) is None
    assert state_of(pipe.transformer) == before
    with ras_dit.enable(pipe, REGION) as handle:
        handle.disable()  # it may be over before the block is
