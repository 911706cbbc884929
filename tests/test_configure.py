"""Another config, or none, for the next run: everything that is on the pipeline stays where it is."""

from __future__ import annotations

import warnings
from typing import Any

import diffusers
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import ras_dit
from checks import compiling, fingerprint
from families import flux
from ras_dit import RASConfig
from tiny import REGION, inputs, run, tiny_pipeline, tiny_vae

SKIPPING = RASConfig(sample_ratio=1.0, warmup_steps=2, skip_steps=(3, 5), forecast_order=1)
CONFIGS = [
    REGION,
    SKIPPING,
    REGION.replace(kv_forecast=0.5),
    REGION.replace(static_memory=True, kv_cache_dtype="bfloat16"),
    REGION.replace(shared_active_set=True, importance="std"),
    RASConfig.reference(0.25, start_step=2, end_step=6),
    RASConfig(sample_ratio=1.0),
]


@pytest.mark.parametrize("build", [tiny_pipeline, flux.build])
def test_every_config_gives_what_it_gives_enabled_anew(build: Any) -> None:
    pipe = build()
    call = inputs(batch=2) if build is tiny_pipeline else {**flux.call(batch=2), "num_inference_steps": 10}
    run(pipe, **call)
    before, expected = fingerprint(pipe), []
    for config in CONFIGS:
        with ras_dit.accelerate(pipe, config):
            expected.append(run(pipe, **call))
    handle = ras_dit.enable(pipe, "regions")
    for config, picture in [*zip(CONFIGS, expected, strict=True), *zip(CONFIGS[::-1], expected[::-1], strict=True)]:
        handle.configure(config)
        assert handle.config == config
        assert torch.equal(run(pipe, **call), picture), config
    handle.disable()
    assert fingerprint(pipe) == before


def test_a_bad_config_changes_nothing() -> None:
    pipe, call = tiny_pipeline(), inputs()
    handle = ras_dit.enable(pipe, REGION)
    expected = run(pipe, **call)
    for bad, message in (
        ({"config": REGION, "preset": "fast"}, "configure: got both a config and preset='fast'; give one of them"),
        ({"config": REGION.replace(reference_reuse=True)}, "reference_reuse: got SD3Transformer2DModel; allowed"),
        ({"config": SKIPPING, "score": lambda known: known.age}, "score: got one with a plan without region steps"),
        ({"config": REGION.replace(kv_cache_device="hpu")}, "kv_cache_device: got 'hpu', which PyTorch cannot use"),
    ):
        with pytest.raises(ValueError, match=message):
            handle.configure(**bad)
    assert handle.config == REGION
    assert torch.equal(run(pipe, **call), expected)
    handle.disable()
    with pytest.raises(ValueError, match=r"configure: RAS is disabled on this handle; call ras_dit.enable\(pipe, conf"):
        handle.configure(REGION)


def test_a_score_comes_and_goes_with_the_config() -> None:
    pipe, call, seen = tiny_pipeline(), inputs(), []

    def score(known: ras_dit.ScoreInputs) -> torch.Tensor:
        seen.append(known.index)
        return known.age.float()

    handle = ras_dit.enable(pipe, REGION)
    expected = run(pipe, **call)
    handle.configure(REGION, score=score)
    run(pipe, **call)
    assert seen == list(range(2, 10))
    handle.configure(REGION)
    assert torch.equal(run(pipe, **call), expected)
    assert len(seen) == 8


def test_a_run_under_way_is_finished_dense() -> None:
    pipe = tiny_pipeline()

    def change(_pipe: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == 4:
            handle.configure(SKIPPING)
        return tensors

    counts: list[int] = []
    with ras_dit.accelerate(pipe, REGION) as handle:
        block = pipe.transformer.transformer_blocks[0]
        hook = block.register_forward_hook(lambda module, args, output: counts.append(output[1].shape[1]))
        with warnings.catch_warnings():
            warnings.simplefilter("error", ras_dit.RASWarning)
            warnings.simplefilter("ignore", ras_dit.AdviceWarning)
            assert run(pipe, **inputs(callback_on_step_end=change)).isfinite().all()
        hook.remove()
        assert counts == [96, 96, 24, 24, 24, *[96] * 5]
        assert len(handle.trace.steps) == 5
        assert "The config was changed in the middle of the run: the rest of it was dense." in handle.summary().notes
        run(pipe, **inputs())
        assert handle.summary().notes == ()
        assert [step.kind for step in handle.trace.steps].count("skip") == 2


def test_the_mask_of_an_inpainting_call_is_seen_once_it_is_asked_for() -> None:
    parts = tiny_pipeline(in_channels=16, out_channels=16).components
    for name in ("image_encoder", "feature_extractor"):
        parts.pop(name, None)
    pipe = diffusers.StableDiffusion3InpaintPipeline(**{**parts, "vae": tiny_vae()})
    pipe.set_progress_bar_config(disable=True)
    mask = torch.zeros(1, 1, 32, 48)
    mask[..., 16:, 24:] = 1
    call = {**inputs(num_inference_steps=10), "latents": None, "strength": 1.0, "height": 32, "width": 48}
    call |= {"image": torch.rand(1, 3, 32, 48), "mask_image": mask}
    with ras_dit.accelerate(pipe, REGION.replace(region_of_interest="inpaint")):
        expected = run(pipe, **call)
    with ras_dit.accelerate(pipe, SKIPPING) as handle:
        run(pipe, **call)
        handle.configure(REGION.replace(region_of_interest="inpaint"))
        assert torch.equal(run(pipe, **call), expected)
        handle.configure(REGION)
        assert not torch.equal(run(pipe, **call), expected)
    assert "prepare_mask_latents" not in vars(pipe)


def test_what_was_said_of_a_run_is_not_judged_by_the_next_config() -> None:
    pipe, call = tiny_pipeline(), inputs(batch=2, num_inference_steps=15)
    with ras_dit.accelerate(pipe, REGION) as handle:
        run(pipe, **call)
        before = handle.summary()
        assert any("15 evaluations" in advice for advice in before.advice)
        handle.configure(REGION.replace(region_of_interest="inpaint", kv_cache_dtype="bfloat16"))
        assert handle.summary() == before


def test_warnings_that_are_errors_leave_the_config_before() -> None:
    pipe, call = tiny_pipeline(), inputs()
    handle = ras_dit.enable(pipe, RASConfig(sample_ratio=1.0))
    dense = run(pipe, **call)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ras_dit.SmallGainWarning)
        for _ in range(2):
            with pytest.raises(ras_dit.SmallGainWarning):
                handle.configure(REGION)
    assert handle.config == RASConfig(sample_ratio=1.0)
    assert torch.equal(run(pipe, **call), dense)


@pytest.mark.parametrize(
    "config",
    [
        REGION,
        SKIPPING,
        REGION.replace(solver_order=2, static_memory=True),
        RASConfig.reference(0.25, start_step=2, end_step=26),
        REGION.replace(refresh_steps=(12,)),
        RASConfig(sample_ratio=0.5, warmup_steps=10),
        RASConfig(sample_ratio=1.0, solver_order=2),
        REGION.replace(region_of_interest=torch.ones(3, 40, dtype=torch.bool)),
    ],
)
def test_runs_that_begin_in_a_pause_are_dense(config: RASConfig) -> None:
    pipe, call = tiny_pipeline(), inputs()
    dense = run(pipe, **call)
    with ras_dit.accelerate(pipe, config) as handle:
        fast = None if config.region_of_interest is not None else run(pipe, **call)
        with handle.paused(), warnings.catch_warnings():
            warnings.simplefilter("error", ras_dit.RASWarning)
            assert torch.equal(run(pipe, **call), dense)
            with handle.paused():
                pass
            assert torch.equal(run(pipe, **call), dense), "a pause within a pause does not end it"
        assert handle.summary().notes == ("RAS was paused as the run began: it was dense.",)
        if fast is None:  # of other proportions than the picture
            return
        assert torch.equal(run(pipe, **call), fast)
        assert "RAS was paused as the run began: it was dense." not in handle.summary().notes
        with pytest.raises(RuntimeError, match="stop"), handle.paused():
            raise RuntimeError("stop")
        assert torch.equal(run(pipe, **call), fast), "an error ends the pause, too"


def test_a_pause_asks_nothing_of_the_scheduler() -> None:
    pipe = tiny_pipeline(scheduler=diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0))
    config = REGION.replace(forecast_order=1, forecast_midpoint=True)
    with ras_dit.accelerate(pipe, config) as handle, handle.paused(), warnings.catch_warnings():
        warnings.simplefilter("error", ras_dit.RASWarning)
        run(pipe, **inputs())
        assert handle.summary().notes == ("RAS was paused as the run began: it was dense.",)


@torch.no_grad()
def test_compiled_blocks_stay_compiled() -> None:
    """Every kind of step is compiled once, whichever config it is of, and however often they change."""
    pipe, call = tiny_pipeline(), inputs()
    counter = CompileCounterWithBackend("eager")
    configs = [REGION, SKIPPING, REGION.replace(importance="std")]
    with compiling():
        for block in pipe.transformer.transformer_blocks:
            block.compile(fullgraph=True, backend=counter)
        with ras_dit.accelerate(pipe, REGION) as handle:
            for config in configs:
                handle.configure(config)
                run(pipe, **call)
            num_graphs = counter.frame_count
            assert num_graphs > 0
            for config in configs:
                handle.configure(config)
                run(pipe, **call)
                with handle.paused():
                    run(pipe, **call)
            assert counter.frame_count == num_graphs


@torch.no_grad()
def test_nor_are_blocks_compiled_anew_if_ras_is_enabled_anew() -> None:
    pipe, call = tiny_pipeline(), inputs()
    counter = CompileCounterWithBackend("eager")
    with compiling():
        for block in pipe.transformer.transformer_blocks:
            block.compile(fullgraph=True, backend=counter)
        counts = []
        for _ in range(4):
            with ras_dit.accelerate(pipe, REGION):
                run(pipe, **call)
            counts.append(counter.frame_count)
    assert counts[0] > 0
    assert set(counts) == {counts[0]}
