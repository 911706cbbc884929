"""Calls and transformers that RAS cannot follow: refused by name, or dense with a note, never wrong or stuck."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, MagCacheConfig
from diffusers.hooks import apply_mag_cache
from PIL import Image

import ras_dit
from families import cosmos3, ltx, z_image
from ras_dit import RASConfig
from ras_dit.arena.methods import AdamsBashforth2Scheduler
from ras_dit.calibration import least_error
from ras_dit.chooser import TokenChooser
from ras_dit.models.cosmos3 import COSMOS3
from ras_dit.models.ltx2 import LTX2
from ras_dit.models.z_image import Z_IMAGE
from ras_dit.schedule import forecast_levels, is_at, noise_levels
from ras_dit.why_dense import why_split
from tiny import REGION, inputs, run, tiny_pipeline


@pytest.mark.parametrize("is_ras_first", [True, False])
def test_a_step_cache_put_on_by_its_function_is_refused(is_ras_first: bool) -> None:
    """The only way to one on Stable Diffusion 3, whose transformer has no `enable_cache`."""
    pipe = tiny_pipeline()
    cache = MagCacheConfig(num_inference_steps=10, mag_ratios=torch.ones(10))
    with contextlib.ExitStack() as stack:
        if is_ras_first:
            stack.enter_context(ras_dit.accelerate(pipe, REGION))
        apply_mag_cache(pipe.transformer, cache)
        with pytest.raises(ValueError, match="mag_cache"):
            run(pipe, **inputs()) if is_ras_first else ras_dit.enable(pipe, REGION)


def test_a_transformer_compiled_as_a_whole_is_refused() -> None:
    pipe = tiny_pipeline()
    pipe.transformer.compile(backend="eager")
    with pytest.raises(ValueError, match="its blocks compiled in place"):
        ras_dit.enable(pipe, REGION)
    pipe.transformer._compiled_call_impl = None
    ras_dit.enable(pipe, REGION)


def test_recorded_gradients_leave_a_run_dense() -> None:
    pipe = tiny_pipeline()
    call = inputs(output_type="latent")
    dense = run(pipe, **call)
    sample = type(pipe).__call__.__wrapped__  # type: ignore[attr-defined]  # without its torch.no_grad()
    with torch.enable_grad(), ras_dit.accelerate(pipe, REGION) as handle:
        with pytest.warns(ras_dit.RASWarning, match="Gradients"):
            assert torch.equal(sample(pipe, **call).images, dense)
        assert handle.summary().num_dense == 10
        pipe.transformer.requires_grad_(False)
        sample(pipe, **call)
        assert handle.summary().num_dense < 10


def sampled(
    pipe: Any, num_steps: int, on_call: Callable[[int, torch.Tensor], dict[str, Any]]
) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    """A loop of one's own with two calls per evaluation; gives their noises, and the calls. ``on_call`` says what else
    is asked for, given the number of the call and the latents."""
    call, noises, calls = inputs(), [], []
    pipe.scheduler.set_timesteps(num_steps)
    latents = call["latents"]
    for timestep in pipe.scheduler.timesteps:
        for side in ("", "negative_"):
            asked = {
                "hidden_states": latents,
                "timestep": timestep.expand(1),
                "encoder_hidden_states": call[f"{side}prompt_embeds"],
                "pooled_projections": call[f"{side}pooled_prompt_embeds"],
                "return_dict": False,
                **on_call(len(noises), latents),
            }
            noises.append(pipe.transformer(**asked)[0])
            calls.append(asked)
        noise = 4 * noises[-2].detach() - 3 * noises[-1].detach()
        latents = pipe.scheduler.step(noise, timestep, latents, return_dict=False)[0]
    return noises, calls


@pytest.mark.parametrize("begin", [0, 7])
@pytest.mark.parametrize("config", [REGION, REGION.replace(skip_steps=(5,), solver_order=2)])
def test_gradients_of_what_a_call_is_given_leave_the_rest_dense(config: RASConfig, begin: int) -> None:
    """Loss guidance, from some call on: frozen weights, latents that record gradients."""
    pipe = tiny_pipeline()
    pipe.transformer.requires_grad_(False)

    def on_call(number: int, latents: torch.Tensor) -> dict[str, Any]:
        return {"hidden_states": latents.detach().requires_grad_(number >= begin)}

    with torch.enable_grad():
        plain, _ = sampled(pipe, 8, on_call)
        with (
            pytest.warns(ras_dit.RASWarning, match="Gradients are recorded"),
            ras_dit.accelerate(pipe, config) as handle,
        ):
            noises, _ = sampled(pipe, 8, on_call)
    for number, noise in enumerate(noises):
        assert noise.requires_grad is (number >= begin)
        if noise.requires_grad:
            noise.square().sum().backward()
    assert handle.summary().num_steps == 8
    if not begin:
        assert all(torch.equal(noise, other) for noise, other in zip(noises, plain, strict=True))
        assert handle.summary().num_dense == 8
    assert all(step.kind == "dense" for step in handle.trace.steps[(begin + 1) // 2 :])


def test_another_guidance_pass_in_the_place_of_one_begins_anew() -> None:
    """As with LTX-2's guiders, one of which ends midway: the calls after it move up."""
    pipe = tiny_pipeline()

    def on_call(number: int, _: torch.Tensor) -> dict[str, Any]:
        return {"skip_layers": [1]} if number % 2 and number < 9 else {}

    config = REGION.replace(kv_forecast=0.5, forecast_order=1)
    began = pytest.warns(ras_dit.RASWarning, match="A guidance branch began")
    with torch.no_grad(), began, ras_dit.accelerate(pipe, config) as handle:
        noises, calls = sampled(pipe, 8, on_call)
    assert [step.kind for step in handle.trace.steps] == ["dense"] * 2 + ["region"] * 6
    with torch.no_grad():
        dense = [pipe.transformer(**call)[0] for call in calls]
    is_dense = [torch.equal(noise, other) for noise, other in zip(noises, dense, strict=True)]
    assert is_dense == [number in (0, 1, 2, 3, 9) for number in range(16)]


def test_tensors_of_the_cpu_are_made_there_whatever_the_default_device() -> None:
    pipe = tiny_pipeline()
    config = REGION.replace(importance="random")
    with ras_dit.accelerate(pipe, config) as handle:
        expected = run(pipe, **inputs())
        counts = handle.trace.times_computed()
        shuffled = TokenChooser._shuffled

        def elsewhere(*args: Any) -> torch.Tensor:
            with torch.device("meta"):
                return shuffled(*args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TokenChooser, "_shuffled", elsewhere)
            assert torch.equal(run(pipe, **inputs()), expected)
        with torch.device("meta"):
            assert torch.equal(handle.trace.times_computed(), counts)
    terms, wanted = torch.randn(3, 2, 50, dtype=torch.float64), torch.randn(3, 50, dtype=torch.float64)
    shares = least_error(terms, wanted)
    with torch.device("meta"):
        assert torch.equal(least_error(terms, wanted), shares)


def test_layers_on_several_devices_leave_a_run_dense() -> None:
    pipe = tiny_pipeline()
    dense = run(pipe, **inputs())
    pipe.transformer.hf_device_map = {"pos_embed": 0, "transformer_blocks": 1}
    with pytest.warns(ras_dit.RASWarning, match="several devices"), ras_dit.accelerate(pipe, REGION) as handle:
        assert torch.equal(run(pipe, **inputs()), dense)
    assert handle.summary().num_dense == 10
    pipe.transformer.hf_device_map = {"pos_embed": 0, "transformer_blocks": "cpu", "proj_out": "disk"}
    with ras_dit.accelerate(pipe, REGION) as handle:
        run(pipe, **inputs())
    assert handle.summary().num_dense < 10


def test_a_call_without_a_grid_is_left_alone_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = z_image.build()
    with torch.no_grad():
        dense = pipe(**z_image.call()).images

        def no_grid(*_: Any) -> Any:
            raise TypeError("list indices must be integers or slices, not NoneType")

        with ras_dit.accelerate(pipe, REGION) as handle:
            plan = handle._session.token_plan
            monkeypatch.setattr(handle._session, "token_plan", _changed(plan, grid=no_grid))
            with pytest.raises(TypeError):
                pipe(**z_image.call())
            monkeypatch.setattr(handle._session, "token_plan", _changed(plan, grid=no_grid, check=lambda *_: "No."))
            with pytest.warns(ras_dit.RASWarning, match="No"):
                assert torch.equal(pipe(**z_image.call()).images, dense)
            assert handle.trace.notes == ["No."]
    assert Z_IMAGE.grid_or_reason(None, {"x": [[torch.zeros(4, 1, 4, 4)]]}) == Z_IMAGE.check(None, {"x": [[]]})


def _changed(plan: Any, **changes: Any) -> Any:
    import dataclasses

    return dataclasses.replace(plan, **changes)


def test_ltx2_without_a_number_of_frames_is_refused() -> None:
    assert "frames" in str(LTX2.check(None, {}))
    assert LTX2.check(None, {"num_frames": 3}) is None


def test_forecasts_begin_below_the_level_whatever_the_scheduler_counts_in() -> None:
    plain = FlowMatchEulerDiscreteScheduler()
    plain.set_timesteps(10)
    levels = noise_levels(plain)
    assert forecast_levels(plain, levels) == levels
    assert forecast_levels(plain, levels[3:]) == levels[3:]
    inverted = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)  # Mochi, OmniGen
    inverted.set_timesteps(10)
    assert noise_levels(inverted)[0] < 0.1
    assert forecast_levels(inverted, noise_levels(inverted)) == pytest.approx(levels, abs=1e-6)
    edm = FlowMatchEulerDiscreteScheduler()  # Cosmos Predict2 sets its own
    edm.sigmas = torch.tensor([80.0, 4.0, 1.0, 0.25, 0.0])
    edm.timesteps = 1000 * edm.sigmas[:-1]
    found = forecast_levels(edm, noise_levels(edm))
    assert found == pytest.approx([80 / 81, 0.8, 0.5, 0.2, 0.0])
    assert forecast_levels(edm, noise_levels(edm)[2:]) == pytest.approx([0.5, 0.2, 0.0])


def test_schedulers_of_the_arena_read_their_levels_once_a_run() -> None:
    pipe = tiny_pipeline(scheduler=AdamsBashforth2Scheduler(shift=3.0))
    first = run(pipe, **inputs())
    assert torch.equal(run(pipe, **inputs(num_inference_steps=10)), first)
    assert not torch.equal(run(pipe, **inputs(num_inference_steps=7)), first)
    assert len(pipe.scheduler._levels) == 8


def test_a_sequence_that_is_split_among_devices_leaves_region_steps_dense() -> None:
    pipe = tiny_pipeline()
    dense = run(pipe, **inputs())
    pipe.transformer._parallel_config = SimpleNamespace(context_parallel_config=object())
    with pytest.warns(ras_dit.RASWarning, match="context parallelism"), ras_dit.accelerate(pipe, REGION) as handle:
        assert torch.equal(run(pipe, **inputs()), dense)
    assert handle.summary().num_dense == 10
    with ras_dit.accelerate(pipe, RASConfig(sample_ratio=1.0, skip_steps=(5, 7))) as handle:
        run(pipe, **inputs())
    assert [step.kind for step in handle.trace.steps].count("skip") == 2
    pipe.transformer._parallel_config = SimpleNamespace(context_parallel_config=None)  # tensors are split, not the rows
    pipe.transformer._cp_shard_fn = object()
    assert "context parallelism" in str(why_split(pipe.transformer))
    pipe.transformer._cp_shard_fn = None
    with ras_dit.accelerate(pipe, REGION) as handle:
        run(pipe, **inputs())
    assert handle.summary().num_dense < 10


def test_control_videos_of_cosmos3_are_refused() -> None:
    pipe = cosmos3.build()
    seen: list[dict[str, Any]] = []
    hook = pipe.transformer.register_forward_pre_hook(lambda *call: seen.append(call[2]), with_kwargs=True)
    pipe(**cosmos3.call())
    hook.remove()
    assert COSMOS3.check(pipe.transformer, seen[0]) is None
    both = {**seen[0], "vision_tokens": [torch.zeros(1, 4, 3, 6, 8), *seen[0]["vision_tokens"]]}
    assert "control videos" in str(COSMOS3.check(pipe.transformer, both))


def test_a_transformer_that_is_called_at_other_times_is_told_of() -> None:
    pipe = tiny_pipeline()
    call = inputs()
    with torch.no_grad(), ras_dit.accelerate(pipe, REGION) as handle:
        pipe.scheduler.set_timesteps(6)
        for timestep in pipe.scheduler.timesteps:
            noise = pipe.transformer(
                hidden_states=call["latents"],
                timestep=(timestep - 3).expand(1),
                encoder_hidden_states=call["prompt_embeds"],
                pooled_projections=call["pooled_prompt_embeds"],
                return_dict=False,
            )[0].detach()
            pipe.scheduler.step(noise, timestep, call["latents"], return_dict=False)
    assert any("other timesteps" in note for note in handle.summary().notes)
    assert handle.summary().num_steps == 0


def test_a_run_that_leaves_the_transformer_out_is_told_of() -> None:
    """MiniMax-H3 has one of its own for calls with references."""
    pipe = tiny_pipeline()
    call = inputs()
    with ras_dit.accelerate(pipe, REGION) as handle:
        run(pipe, **inputs())
        pipe.scheduler.set_timesteps(4)
        first = pipe.scheduler.timesteps[0]
        pipe.progress_bar(total=4)
        with pytest.warns(ras_dit.RASWarning, match="did not call the transformer"):
            pipe.scheduler.step(call["latents"], first, call["latents"], return_dict=False)
        assert handle.summary().num_steps == 0
        run(pipe, **inputs())
        assert handle.summary().notes == ()


def test_a_modular_pipeline_that_leaves_the_transformer_out_is_told_of() -> None:
    """They have no progress bar of their own by which a loop is known to have begun."""
    pipe, call = tiny_pipeline(), inputs()
    modular = SimpleNamespace(transformer=pipe.transformer, scheduler=pipe.scheduler, config={})
    with ras_dit.accelerate(modular, REGION) as handle:
        run(pipe, **inputs())
        assert handle.summary().num_steps == 10
        pipe.scheduler.set_timesteps(4)
        with warnings.catch_warnings():  # somebody else's loop, for all that is known
            warnings.simplefilter("error", ras_dit.RASWarning)
            pipe.scheduler.step(call["latents"], pipe.scheduler.timesteps[0], call["latents"], return_dict=False)
        assert handle.summary().num_steps == 10
        modular.transformer_ref = object()
        pipe.scheduler.set_timesteps(4)
        with pytest.warns(ras_dit.RASWarning, match="did not call the transformer"):
            pipe.scheduler.step(call["latents"], pipe.scheduler.timesteps[0], call["latents"], return_dict=False)
        assert handle.summary().num_steps == 0


@pytest.mark.parametrize(("dim", "is_dense"), [(0, False), (1, True)])
def test_layers_that_take_tokens_in_chunks_leave_the_run_dense(dim: int, is_dense: bool) -> None:
    pipe = tiny_pipeline()
    pipe.transformer.enable_forward_chunking(chunk_size=1, dim=dim)
    with ras_dit.accelerate(pipe, REGION) as handle, warnings.catch_warnings():
        warnings.simplefilter("ignore", ras_dit.RASWarning)
        run(pipe, **inputs())
    assert all(step.kind == "dense" for step in handle.trace.steps) == is_dense
    assert ("in chunks of one size" in " ".join(handle.summary().notes)) == is_dense


def test_integer_timesteps_are_cut_off_and_found() -> None:
    expected = torch.tensor(712.63)
    assert is_at(torch.tensor([712]), expected, like=torch.tensor([712]))
    assert not is_at(torch.tensor([711]), torch.tensor(712), like=torch.tensor([711]))
    assert not is_at(712.0, expected, like=712.0)
    half = torch.tensor([712.63]).bfloat16()
    assert is_at(half.float(), expected, like=half)
    assert not is_at(half.float(), expected, like=half.float())


def test_a_video_that_is_given_in_part_everywhere_is_dense_and_told_of() -> None:
    """Its tokens have half the timestep of the scheduler, and nothing says where the run begins."""
    pipe, call = ltx.build_condition(), ltx.call_condition(strength=0.5, at=(0,), guidance_scale=1.0)
    frames = [Image.new("RGB", (call["width"], call["height"]), (9 * index, 90, 30)) for index in range(17)]
    call.update(image=[None], video=[frames])
    dense = pipe(**{**call, "generator": torch.Generator().manual_seed(5)})[0]
    with (
        pytest.warns(ras_dit.RASWarning, match="given in part"),
        ras_dit.accelerate(pipe, RASConfig(sample_ratio=0.25, warmup_steps=2)),
    ):
        assert torch.equal(pipe(**{**call, "generator": torch.Generator().manual_seed(5)})[0], dense)
