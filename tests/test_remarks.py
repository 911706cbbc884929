"""What users are told of runs that are not as they look: short ones, calls that nobody follows, a ControlNet beside."""

from __future__ import annotations

import dataclasses
import gc
import warnings
import weakref
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

import ras_dit
from families import flux, qwen_image
from ras_dit import RASConfig, RASWarning, SmallGainWarning, build_plan
from ras_dit.clocks import Stopwatch
from ras_dit.models.sizes import default_text
from ras_dit.remarks import OF_REGION_STEPS, unused_options, why_short
from ras_dit.trace import StepTrace
from tiny import REGION, inputs, run, tiny_pipeline


def said(pipe: Any, config: RASConfig | None, **changes: Any) -> list[str]:
    """What a run warns of, small gains apart."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", RASWarning)
        warnings.simplefilter("ignore", SmallGainWarning)
        if config is None:
            run(pipe, **inputs(**changes))
        else:
            with ras_dit.accelerate(pipe, config):
                run(pipe, **inputs(**changes))
    return [str(each.message) for each in seen if issubclass(each.category, RASWarning)]


def call_alone(transformer: torch.nn.Module) -> None:
    """A call of nobody's run."""
    transformer(
        hidden_states=torch.randn(1, 4, 16, 16),
        timestep=torch.tensor([500.0]),
        encoder_hidden_states=torch.randn(1, 7, 32),
        pooled_projections=torch.randn(1, 24),
    )


def test_options_that_only_region_steps_heed_are_named_where_there_are_none() -> None:
    pipe = tiny_pipeline()
    skipping = RASConfig(step_ratios=(1, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1))
    assert said(pipe, skipping, num_inference_steps=12) == []
    idle = skipping.replace(kv_forecast=0.5, importance="std")
    (advice,) = said(pipe, idle, num_inference_steps=12)
    assert advice.startswith("importance, kv_forecast: heeded in region steps alone, and this plan has none")
    with ras_dit.accelerate(pipe, idle) as handle, pytest.warns(ras_dit.AdviceWarning, match="kv_forecast"):
        run(pipe, **inputs(num_inference_steps=12))
    assert any(note.startswith("importance, kv_forecast") for note in handle.summary().notes)
    regions = REGION.replace(sample_ratio=0.5, kv_forecast=0.5, importance="std")
    assert said(pipe, regions, num_inference_steps=12) == []
    assert said(pipe, RASConfig(sample_ratio=1.0, kv_forecast=0.5), num_inference_steps=12) == []
    short = list(unused_options(regions, build_plan(skipping, 12, 96), 0))
    assert short == [], "it asks for regions, and this run is too short for any"


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"starvation_scale": 1.0, "high_ratio": 0.3}, "starvation_scale, high_ratio: importance='error' has no such"),
        ({"forecast_damping": 0.8}, "forecast_damping: forecast_order=0 reuses noise as it is"),
        ({"forecast_midpoint": True, "forecast_below": 0.5}, "forecast_midpoint, forecast_below: forecast_order=0"),
        ({"forecast_reach": None}, "forecast_reach: forecast_order=0"),
        ({"forecast_reach": None, "kv_forecast": 0.5}, None),
        ({"forecast_damping": 0.8, "forecast_order": 1}, None),
        ({"starvation_scale": 1.0, "importance": "std"}, None),
    ],
)
def test_options_that_another_one_keeps_from_being_read_are_told_of(options: dict[str, Any], names: str | None) -> None:
    config = RASConfig(sample_ratio=0.5, **options)
    found = list(unused_options(config, build_plan(config, 28, 256), 0))
    assert [remark.startswith(names or "") for remark, _ in found] == [True] * (names is not None)


def test_every_option_is_one_of_region_steps_or_not() -> None:
    """A new one has to be put on one side."""
    elsewhere = {
        *("sample_ratio", "warmup_steps", "refresh_every", "refresh_steps", "final_sample_ratio", "skip_steps"),
        *("step_ratios", "end_step", "refresh_tolerance", "auto", "seed", "rules", "kernels", "static_memory"),
        *("forecast_order", "forecast_damping", "forecast_below", "forecast_reach", "forecast_midpoint"),
        *("forecast_fit", "solver_order", "skip_num_step", "skip_num_step_length", "region_of_interest"),
    }
    assert {option.name for option in dataclasses.fields(RASConfig)} == elsewhere | set(OF_REGION_STEPS)
    assert not elsewhere & set(OF_REGION_STEPS)


def test_steps_that_a_run_does_not_have_are_left_out_with_a_note() -> None:
    pipe = tiny_pipeline()
    config = RASConfig(sample_ratio=0.5, warmup_steps=2, refresh_steps=(5, 12, 20), skip_steps=(4, 11))
    with ras_dit.accelerate(pipe, config) as handle:
        run(pipe, **inputs(num_inference_steps=24))
        assert handle.summary().notes == ()
        with pytest.warns(RASWarning, match="refresh_steps: 12, refresh_steps: 20, skip_steps: 11: left out, for this"):
            run(pipe, **inputs(num_inference_steps=10))
        kinds = [step.kind for step in handle.trace.steps]
        assert kinds == ["dense", "dense", "region", "region", "skip", "dense", *["region"] * 4]
        with pytest.raises(ValueError, match="refresh_steps: got 12, but this run has 10 transformer evaluations"):
            handle.plan(10, 128, 192)


@pytest.mark.parametrize(
    ("config", "num_steps", "message"),
    [
        (RASConfig(sample_ratio=1.0, warmup_steps=4, skip_steps=(0.3, 0.6)), 10, "skip_steps: 0.3: left out"),
        (
            RASConfig(sample_ratio=1.0, warmup_steps=2, refresh_steps=(0.5,), skip_steps=(6, 8)),
            12,
            "skip_steps: 6: left",
        ),
        (RASConfig(sample_ratio=1.0, warmup_steps=0.2, skip_steps=(4, 9)), 25, "skip_steps: 4: left out"),
        (RASConfig.reference(0.5, start_step=2, end_step=26), 10, "end_step: 26: left out"),
    ],
)
def test_nor_are_steps_an_error_that_are_computed_whole_in_any_case(
    config: RASConfig, num_steps: int, message: str
) -> None:
    pipe = tiny_pipeline()
    with pytest.raises(ValueError, match=r"end_step|skip_steps"):
        build_plan(config, num_steps, 96)
    with ras_dit.accelerate(pipe, config) as handle:
        with pytest.warns(RASWarning, match=message):
            assert run(pipe, **inputs(num_inference_steps=num_steps)).isfinite().all()
        assert any(step.kind != "dense" for step in handle.trace.steps)


def test_a_fitted_forecast_outlasts_a_step_that_is_left_out() -> None:
    pipe = tiny_pipeline()
    config = RASConfig(sample_ratio=0.5, warmup_steps=2, refresh_steps=(5, 12), auto=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RASWarning)
        fitted = ras_dit.calibrate(pipe, config, **inputs(batch=2))
        assert fitted.auto
        assert len(fitted.forecast_fit) == 40
        pictures = []
        for one in (fitted, fitted.replace(forecast_fit=())):
            with ras_dit.accelerate(pipe, one.replace(auto=False)):
                pictures.append(run(pipe, **inputs()))
    assert not torch.equal(*pictures)


def test_a_short_run_is_warned_of_and_a_longer_or_a_dense_one_is_not() -> None:
    pipe = tiny_pipeline()
    (reason,) = said(pipe, REGION, num_inference_steps=8)
    assert reason.startswith("The run has 8 evaluations, in which 44% of the tokens are computed")
    assert said(pipe, REGION.replace(sample_ratio=0.5), num_inference_steps=11) == []
    assert said(pipe, RASConfig(sample_ratio=1.0), num_inference_steps=8) == []


@pytest.mark.parametrize("name", ras_dit.PRESETS)
@pytest.mark.parametrize("num_steps", [4, 10, 15, 20, 28])
def test_presets_that_were_measured_to_harm_a_run_of_this_length_are_warned_of(name: str, num_steps: int) -> None:
    config = ras_dit.PRESETS[name]
    is_short = why_short(build_plan(config, num_steps, 256), config) is not None
    harms_at = {"quality": 10, "regions": 10, "balanced": 10}  # of the others 15; docs/quality.md has the figures
    assert is_short == (num_steps <= harms_at.get(name, 15))


def test_a_small_region_of_interest_does_not_make_a_run_sparse() -> None:
    config = ras_dit.PRESETS["regions"].replace(region_of_interest="inpaint")
    assert why_short(build_plan(config, 17, 256, num_allowed=10), config) is None
    assert why_short(build_plan(config, 10, 256, num_allowed=10), config) is not None


def test_the_summary_repeats_it_and_the_session_does_not() -> None:
    pipe = tiny_pipeline()
    handle = ras_dit.enable(pipe, REGION)
    assert len(said(pipe, None, num_inference_steps=6)) == 1
    assert said(pipe, None, num_inference_steps=6) == []
    assert any(advice.startswith("The run has 6 evaluations") for advice in handle.summary().advice)
    assert handle.summary().notes == (), "everything ran as planned"


def test_another_pipeline_with_a_scheduler_of_its_own_is_told_that_it_runs_dense() -> None:
    pipe = tiny_pipeline()
    parts = {**pipe.components, "scheduler": FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)}
    other = StableDiffusion3Pipeline(**parts)
    other.set_progress_bar_config(disable=True)
    dense = run(other, **inputs())
    with ras_dit.accelerate(pipe, REGION) as handle:
        (reason,) = said(other, None)
        assert reason.startswith("The transformer was called outside of a run")
        assert torch.equal(run(other, **inputs()), dense)
        assert said(pipe, None, num_inference_steps=20) == []
        assert said(other, None) == [], "once"
        assert len(handle.trace.steps) == 20, "the trace is that of its own run"
    with ras_dit.accelerate(pipe, REGION):
        assert said(pipe, None, num_inference_steps=20) == []
        (reason,) = said(other, None)
        assert "share the scheduler object" in reason


def test_notes_of_a_run_do_not_keep_the_next_one_outside_from_being_told() -> None:
    pipe = tiny_pipeline()
    parts = {**pipe.components, "scheduler": FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)}
    other = StableDiffusion3Pipeline(**parts)
    other.set_progress_bar_config(disable=True)
    with ras_dit.accelerate(pipe, REGION) as handle:
        run(pipe, **inputs())
        handle._session.note("some note of this run", is_warning=False)
        (reason,) = said(other, None)
        assert "share the scheduler object" in reason


def test_what_is_told_of_a_run_that_is_not_followed_is_not_of_the_one_before() -> None:
    pipe = tiny_pipeline()
    handle = ras_dit.enable(pipe, REGION)
    assert str(handle.summary()) == "RAS: nothing has run yet."
    run(pipe, **inputs())
    assert handle.summary().speedup_limit is not None
    pipe.transformer = tiny_pipeline(seed=1).transformer
    with pytest.warns(RASWarning, match="was replaced"):
        run(pipe, **inputs())
    summary = handle.summary()
    assert handle.latest_plan is None
    assert (summary.num_steps, summary.speedup_limit, summary.predicted_speedup) == (0, None, None)
    assert str(summary).startswith("RAS: the latest run was not followed.\nNote: The transformer was replaced")


def test_a_call_that_fails_at_its_beginning_leaves_nothing_of_the_one_before() -> None:
    pipe = tiny_pipeline()
    mask = torch.zeros(16, 24, dtype=torch.bool)
    mask[8:, 12:] = True
    with ras_dit.accelerate(pipe, REGION.replace(region_of_interest=mask)) as handle:
        run(pipe, **inputs())
        with pytest.raises(ValueError, match="proportions"):
            run(pipe, **inputs(height=12, width=8))
        assert handle.latest_plan is None
        assert handle.summary().num_steps == 0


def test_a_run_that_is_not_followed_says_why_once() -> None:
    """Its calls are outside of a run, too, but that is not the reason."""
    pipe = tiny_pipeline()
    handle = ras_dit.enable(pipe, REGION)
    with pytest.warns(RASWarning, match="because"):
        handle._session._leave("because")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", RASWarning)
        call_alone(pipe.transformer)
    assert not seen
    assert handle.summary().notes == ("because",)


def test_calls_that_cannot_be_accelerated_anyway_are_not_told_to_share_a_scheduler() -> None:
    """Such as GLM-Image's, which reads its references in a call of their own before the run begins."""
    pipe = tiny_pipeline()
    pipe.transformer.register_to_config(pos_embed_max_size=None)
    with ras_dit.accelerate(pipe, REGION), warnings.catch_warnings():
        warnings.simplefilter("error", RASWarning)
        call_alone(pipe.transformer)


def test_the_latents_of_a_run_are_not_kept() -> None:
    pipe, seen = tiny_pipeline(), []
    handle = ras_dit.enable(pipe, REGION)

    def note(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(weakref.ref(kwargs["hidden_states"]))

    hook = pipe.transformer.register_forward_pre_hook(note, with_kwargs=True, prepend=True)
    run(pipe, **inputs())
    hook.remove()
    gc.collect()
    assert handle.latest_plan is not None
    assert not [ref for ref in seen if ref() is not None]


@pytest.mark.parametrize(("device", "is_timed"), [("cpu", True), ("mps", False), ("xpu", False)])
def test_only_devices_that_can_be_timed_are(device: str, is_timed: bool) -> None:
    step = StepTrace("dense", 1.0)
    Stopwatch(step, torch.device(device)).stop().read()
    assert (step.seconds is not None) == is_timed


def test_rows_are_those_that_a_call_has() -> None:
    """FLUX.1 and Qwen-Image guide with a negative prompt only, whatever ``guidance_scale`` says."""
    for pipe in (flux.build(), flux.build(guidance_embeds=False), qwen_image.build()):
        plan = ras_dit.plan_for(pipe, REGION, 28, 64, 96)
        assert plan.cost is not None
        assert plan.cost.num_rows == 1
        two = ras_dit.plan_for(pipe, REGION, 28, 64, 96, num_images=3, guidance_rows=2).cost
        assert two is not None
        assert two.num_rows == 6
    sd3 = ras_dit.plan_for(tiny_pipeline(), REGION, 28, 128, 192).cost
    assert sd3 is not None
    assert sd3.num_rows == 2
    with pytest.raises(ValueError, match="guidance_rows: got 0; allowed: an int of at least 1"):
        ras_dit.plan_for(flux.build(), REGION, 28, 64, 96, guidance_rows=0)


def test_text_counts_as_long_as_the_pipeline_asks_for_and_references_if_told() -> None:
    pipe, size = flux.build(), (64, 96)
    assert default_text(pipe) == 512
    default = ras_dit.plan_for(pipe, REGION, 28, *size)
    assert default == ras_dit.plan_for(pipe, REGION, 28, *size, max_sequence_length=512)
    assert default.speedup_limit < ras_dit.plan_for(pipe, REGION, 28, *size, max_sequence_length=256).speedup_limit
    with ras_dit.accelerate(pipe, REGION) as handle:
        assert handle.plan(28, *size, num_reference_tokens=24).speedup_limit < handle.plan(28, *size).speedup_limit
        with pytest.raises(ValueError, match="num_reference_tokens: got -1; allowed: an int of at least 0"):
            handle.plan(28, *size, num_reference_tokens=-1)
