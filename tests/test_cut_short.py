"""Runs that are cut short, pipelines that share parts, copies, and notes that belong to one run."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FirstBlockCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    StableDiffusion3Pipeline,
)

import ras_dit
from families import flux, ltx, pixart
from ras_dit import RASConfig
from ras_dit.models.ltx import LTX
from ras_dit.plan import build_plan
from ras_dit.seams import WatchedLoop
from ras_dit.state import MOST_CALLS, STUCK
from test_static_memory import addresses
from tiny import REGION, inputs, run, tiny_pipeline, tiny_transformer


def interrupting(at: int, with_error: bool) -> Any:
    def callback(pipe: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == at and with_error:
            raise KeyboardInterrupt
        pipe._interrupt = index >= at
        return tensors

    return callback


def run_in_part(pipe: Any, with_error: bool, **call: Any) -> None:
    call = inputs(**call, callback_on_step_end=interrupting(4, with_error))
    if with_error:
        with pytest.raises(KeyboardInterrupt):
            run(pipe, **call)
    else:
        run(pipe, **call)


def kinds(handle: ras_dit.Handle) -> list[str]:
    return [step.kind for step in handle.trace.steps]


@pytest.mark.parametrize("with_error", [False, True])
def test_a_run_that_is_cut_short_is_over(with_error: bool) -> None:
    pipe = tiny_pipeline()
    other = StableDiffusion3Pipeline(**{**pipe.components, "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0)})
    other.set_progress_bar_config(disable=True)
    expected = run(other, **inputs(seed=7))
    with ras_dit.accelerate(pipe, REGION) as handle:
        whole = run(pipe, **inputs())
        run_in_part(pipe, with_error)
        assert handle._session._generation is None
        assert len(kinds(handle)) == 5  # what ran is still told
        assert "region" in str(handle.trace.steps[-1].kind)
        assert torch.equal(run(other, **inputs(seed=7)), expected)  # the same transformer, another scheduler
        assert torch.equal(run(pipe, **inputs()), whole)


def test_a_run_that_is_cut_short_frees_keys_and_values() -> None:
    pipe = tiny_pipeline()
    with ras_dit.accelerate(pipe, REGION) as handle:
        kept = []

        def look(_pipe: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            branches = handle._session._generation._branches.values()
            kept.extend(weakref.ref(c) for branch in branches for calls in branch.layers.values() for c in calls)
            return interrupting(4, with_error=True)(_pipe, index, _timestep, tensors)

        with pytest.raises(KeyboardInterrupt):
            run(pipe, **inputs(callback_on_step_end=look))
        gc.collect()
        assert kept
        assert not any(ref() for ref in kept)


def test_an_error_inside_a_region_step_frees_keys_and_values() -> None:
    """As memory that runs out does: the call that failed never gets to its end."""
    pipe = tiny_pipeline()
    with ras_dit.accelerate(pipe, REGION) as handle:
        kept: list[weakref.ref[Any]] = []

        def fail(*_: Any) -> None:
            call = handle._session._call
            if call is not None and call.kind == "region":
                kept.extend(weakref.ref(cached) for calls in call.branch.layers.values() for cached in calls)
                raise torch.OutOfMemoryError

        hook = pipe.transformer.transformer_blocks[1].register_forward_pre_hook(fail)
        with pytest.raises(torch.OutOfMemoryError):
            run(pipe, **inputs())
        hook.remove()
        gc.collect()
        assert kept
        assert not any(ref() for ref in kept)
        assert torch.isfinite(run(pipe, **inputs())).all()


def test_static_memory_outlives_a_run_that_is_cut_short() -> None:
    pipe = tiny_pipeline()
    with ras_dit.accelerate(pipe, REGION.replace(static_memory=True)) as handle:
        run(pipe, **inputs())
        before = addresses(handle)
        run_in_part(pipe, with_error=True)
        assert addresses(handle) == before
        run(pipe, **inputs())
        assert addresses(handle) == before
    assert before


def test_static_memory_in_and_out_of_inference_mode() -> None:
    pipe = tiny_pipeline()
    with ras_dit.accelerate(pipe, REGION.replace(static_memory=True)):
        with torch.inference_mode():
            first = run(pipe, **inputs())
        assert torch.equal(run(pipe, **inputs()), first)


@pytest.mark.parametrize("is_first_disabled_first", [True, False])
def test_two_sessions_on_one_scheduler_come_out_in_any_order(is_first_disabled_first: bool) -> None:
    first, expected = tiny_pipeline(0), []
    second = tiny_pipeline(1, scheduler=first.scheduler)
    pipes = [first, second]
    dense = [run(pipe, **inputs()) for pipe in pipes]
    scheduler = first.scheduler

    def copies_are_plain() -> None:
        scheduler.set_timesteps(10)
        twin = copy.deepcopy(scheduler)
        twin.set_timesteps(3)
        assert len(twin.timesteps) == 3
        assert len(scheduler.timesteps) == 10
        shallow = copy.copy(scheduler)
        shallow.set_timesteps(4)
        assert len(shallow.timesteps) == 4
        assert len(scheduler.timesteps) == 10
        for one in (twin, shallow, pickle.loads(pickle.dumps(scheduler))):
            assert not {"step", "set_timesteps", "__deepcopy__", "__getstate__"} & set(vars(one))

    handles = [ras_dit.enable(pipe, REGION) for pipe in pipes]
    expected = [run(pipe, **inputs()) for pipe in pipes]
    copies_are_plain()
    order = [0, 1] if is_first_disabled_first else [1, 0]
    handles[order[0]].disable()
    copies_are_plain()
    assert torch.equal(run(pipes[order[0]], **inputs()), dense[order[0]])
    assert torch.equal(run(pipes[order[1]], **inputs()), expected[order[1]])
    handles[order[1]].disable()
    copies_are_plain()
    assert not {"step", "set_timesteps", "__deepcopy__", "__getstate__"} & set(vars(scheduler))
    assert [torch.equal(run(pipe, **inputs()), want) for pipe, want in zip(pipes, dense, strict=True)] == [True, True]


def test_a_transformer_with_ras_on_it_is_not_copied() -> None:
    pipe = tiny_pipeline()
    with ras_dit.accelerate(pipe, "balanced"):
        for one in (pipe, pipe.transformer):
            with pytest.raises(ValueError, match=r"ras_dit\.disable\(pipe\) first"):
                copy.deepcopy(one)
            with pytest.raises(ValueError, match=r"ras_dit\.disable\(pipe\) first"):
                pickle.dumps(one)
    assert pickle.loads(pickle.dumps(pipe.scheduler)).config == pipe.scheduler.config
    copy.copy(pipe.transformer)
    twin = copy.deepcopy(pipe.transformer)
    for parameter in twin.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    call = inputs()
    output = twin(
        hidden_states=call["latents"],
        timestep=torch.tensor([321.0]),
        encoder_hidden_states=call["prompt_embeds"],
        pooled_projections=call["pooled_prompt_embeds"],
    ).sample
    assert output.isnan().all()


def test_steps_that_add_noise_by_their_arguments_are_dense() -> None:
    case = pixart.CASES[0]
    pipe = case.build()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    call = {**case.call(), "num_inference_steps": 6}
    with ras_dit.accelerate(pipe, REGION) as handle:
        pipe(**call, eta=0.0)
        assert "region" in kinds(handle)
        with pytest.warns(ras_dit.RASWarning, match="eta=1.0 adds fresh noise"):
            pipe(**call, eta=1.0)
        assert set(kinds(handle)) == {"dense"}
        assert "eta=1.0 adds fresh noise" in " ".join(handle.summary().notes)


@pytest.mark.parametrize("is_ras_first", [False, True])
def test_a_step_cache_under_ras_is_refused(is_ras_first: bool) -> None:
    pipe = flux.build()
    call = flux.call(height=6, width=8)
    cache = FirstBlockCacheConfig(threshold=0.05)
    if is_ras_first:
        ras_dit.enable(pipe, REGION)
        pipe.transformer.enable_cache(cache)
        with pytest.raises(ValueError, match="disable_cache"):
            pipe(**call)
        pipe.transformer.disable_cache()
        pipe(**call)
    else:
        pipe.transformer.enable_cache(cache)
        with pytest.raises(ValueError, match="disable_cache"):
            ras_dit.enable(pipe, REGION)
        pipe(**call)  # and the pipeline is well


def test_dense_leaves_nothing_out_and_takes_plain_steps() -> None:
    config = RASConfig(sample_ratio=0.5, final_sample_ratio=0.25, warmup_steps=2, solver_order=2)
    assert build_plan(config.dense, 10, 96).token_steps == 10
    assert not config.dense.has_savings
    assert RASConfig(sample_ratio=1.0, final_sample_ratio=0.2).has_savings
    pipe = tiny_pipeline()
    expected = run(pipe, **inputs())
    with ras_dit.accelerate(pipe, config.replace(auto=True)) as handle:
        assert torch.equal(run(pipe, **inputs()), expected)
    assert set(kinds(handle)) == {"dense"}
    pipe = tiny_pipeline(scheduler=FlowMatchLCMScheduler(shift=3.0))
    with pytest.warns(ras_dit.RASWarning, match="adds fresh noise"), ras_dit.accelerate(pipe, config) as handle:
        run(pipe, **inputs())
    assert set(kinds(handle)) == {"dense"}


def test_notes_belong_to_the_run_they_are_of() -> None:
    pipe = tiny_pipeline(scheduler=FlowMatchLCMScheduler(shift=3.0))
    with pytest.warns(ras_dit.RASWarning, match="adds fresh noise"):
        handle = ras_dit.enable(pipe, REGION)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    run(pipe, **inputs())
    assert "region" in kinds(handle)
    assert not any("fresh noise" in note for note in handle.summary().notes)
    own, pipe.transformer = pipe.transformer, tiny_transformer(1)
    with pytest.warns(ras_dit.RASWarning, match="was replaced"):
        run(pipe, **inputs())
    assert "was replaced" in str(handle.summary())
    pipe.transformer = own
    run(pipe, **inputs())
    assert not any("was replaced" in note for note in handle.summary().notes)


def test_any_seed_chooses_tokens() -> None:
    pipe = tiny_pipeline()
    with ras_dit.accelerate(pipe, REGION.replace(importance="random", seed=2**63 - 1)) as handle:
        run(pipe, **inputs())
    assert "region" in kinds(handle)


@pytest.mark.parametrize("device", ["gpu", "xpu:77"])
def test_a_cache_on_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match="kv_cache_device: got"):
        ras_dit.enable(tiny_pipeline(), REGION.replace(kv_cache_device=device))


def test_numbers_of_numpy_are_numbers_and_infinite_ones_are_refused() -> None:
    config = RASConfig(sample_ratio=np.float64(0.25), warmup_steps=np.int64(2), step_ratios=())
    assert RASConfig.from_yaml(config.to_yaml()) == config == RASConfig(sample_ratio=0.25, warmup_steps=2)
    ratios = RASConfig(step_ratios=(np.float64(1.0), np.float32(0.5)))
    assert RASConfig.from_json(ratios.to_json()) == ratios
    with pytest.raises(ValueError, match="starvation_scale"):
        RASConfig(starvation_scale=float("inf"))


def test_tokens_that_are_sampled_are_no_references() -> None:
    """VisualCloze's rows of pictures are all denoised, though their position ids tell them apart as references do."""
    pipe = flux.build()
    prepare = pipe.prepare_latents

    def in_two_rows(*args: Any, **kwargs: Any) -> Any:
        latents, ids = prepare(*args, **kwargs)
        half = len(ids) // 2
        ids = ids.clone()
        ids[half:, 0] = 1
        ids[half:, 1] -= ids[half, 1].clone()
        return latents, ids

    pipe.prepare_latents = in_two_rows
    call = {**flux.call(height=6, width=8), "num_inference_steps": 8}
    dense = pipe(**call).images
    for config in (REGION, RASConfig.preset("balanced")):
        with (
            pytest.warns(ras_dit.RASWarning, match="steps more tokens than those of the picture"),
            ras_dit.accelerate(pipe, config) as handle,
        ):
            assert torch.equal(pipe(**call).images, dense)
        assert set(kinds(handle)) == {"dense"}


def test_position_ids_with_a_batch_dimension_run_dense() -> None:
    pipe = flux.build()
    prepare = pipe.prepare_latents

    def with_batch(*args: Any, **kwargs: Any) -> Any:
        latents, ids = prepare(*args, **kwargs)
        return latents, ids[None]

    pipe.prepare_latents = with_batch
    call = flux.call(height=6, width=8)
    dense = pipe(**call).images
    with pytest.warns(ras_dit.RASWarning, match="batch dimension"), ras_dit.accelerate(pipe, REGION) as handle:
        assert torch.equal(pipe(**call).images, dense)
    assert set(kinds(handle)) == {"dense"}


def test_ltx_with_coordinates_beside_a_size_that_is_none_is_refused() -> None:
    transformer = ltx.build().transformer

    def reason(frames: int, height: int, width: int) -> str | None:
        sizes = {"num_frames": frames, "height": height, "width": width}
        return LTX.check(transformer, {**sizes, "hidden_states": torch.zeros(1, 72, 8)})

    assert reason(2, 6, 6) is None
    assert "not one video of the size given" in str(reason(1, 1, 1))


class Inverting(StableDiffusion3Pipeline):
    """A loop of its own, as pipelines that invert or edit have: it takes the noise, and no step of the scheduler."""

    num_calls = 1

    def __call__(self, **call: Any) -> torch.Tensor:
        self.scheduler.set_timesteps(call["num_inference_steps"])
        latents, sigmas = call["latents"], self.scheduler.sigmas
        with self.progress_bar(total=len(sigmas) - 1), torch.no_grad():
            for index, timestep in enumerate(self.scheduler.timesteps):
                for _ in range(self.num_calls):
                    noise = self.transformer(
                        hidden_states=latents,
                        timestep=timestep.expand(len(latents)),
                        encoder_hidden_states=call["prompt_embeds"],
                        pooled_projections=call["pooled_prompt_embeds"],
                    ).sample
                latents = latents + (sigmas[index + 1] - sigmas[index]) * noise
        return latents


def test_a_loop_that_steps_no_scheduler_is_dense_and_over_with_its_end() -> None:
    pipe = tiny_pipeline(pipeline=Inverting)
    dense = pipe(**inputs())
    with ras_dit.accelerate(pipe, RASConfig(sample_ratio=0.5, warmup_steps=1)) as handle:
        assert torch.equal(pipe(**inputs()), dense)
        assert "The run was cut short after 0 of 10 evaluations." in handle.summary().notes
        assert handle._session._generation is None, "nothing is kept"


def test_calls_without_a_step_are_not_remembered_without_end() -> None:
    pipe = tiny_pipeline(pipeline=Inverting)
    pipe.num_calls = MOST_CALLS + 2
    dense = pipe(**inputs(num_inference_steps=3))
    with ras_dit.accelerate(pipe, RASConfig(sample_ratio=0.5, warmup_steps=1)) as handle:
        with pytest.warns(ras_dit.RASWarning, match="called 32 times without a step"):
            assert torch.equal(pipe(**inputs(num_inference_steps=3)), dense)
        assert STUCK in handle.summary().notes


def test_an_error_of_the_loop_is_not_hidden_by_one_of_clearing_up() -> None:
    """A GPU that has failed fails again when it is asked for the time."""
    closed: list[Any] = []

    class Bar:
        def __enter__(self) -> Bar:
            return self

        def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
            closed.append(kind)

    def fail() -> None:
        raise RuntimeError("no time")

    with pytest.raises(RuntimeError, match="first"), WatchedLoop(Bar(), lambda: False, fail):
        raise RuntimeError("first")
    with pytest.raises(RuntimeError, match="no time"), WatchedLoop(Bar(), lambda: True, fail):
        pass
    assert closed == [RuntimeError]
