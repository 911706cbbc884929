"""The forecast fitted to dense runs: what it computes, that fitting finds what there is, when it is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline, UniPCMultistepScheduler

import ras_dit
from families import one_case_per_class
from ras_dit import RASConfig
from ras_dit.calibration import DenseRun, least_error
from ras_dit.fitted import FittedForecast
from ras_dit.geometry import TokenGrid
from tiny import inputs, run, tiny_pipeline

STEPS = 8
SKIPS = RASConfig(step_ratios=(1, 1, 0, 1, 0, 0, 1, 0), forecast_order=1)
REGIONS = RASConfig(step_ratios=(1, 1, 1, 0.25, 0.25, 1, 0.5, 0), forecast_order=1)


def latents_of(pipe: Any, **changes: Any) -> torch.Tensor:
    return run(pipe, **inputs(**{"batch": 2, "num_inference_steps": STEPS, "output_type": "latent", **changes}))


def test_the_forecast_by_hand() -> None:
    """Two tokens: the first is computed every time, the second is left out of the last evaluation."""
    grid = TokenGrid(1, 2, 1)
    fit = (0.0,) * 12 + (0.5, -0.25, 0.1, 2.0)
    forecast = FittedForecast(fit, grid, [1.0, 0.8, 0.5, 0.3, 0.0])
    noises = [torch.tensor([[[[a, b]]]]) for a, b in ((1.0, 10.0), (2.0, 12.0), (4.0, 17.0))]
    latents = torch.tensor([[[[7.0, 3.0]]]])
    for index, noise in enumerate(noises):
        assert forecast.adjusted(index, noise, latents, None) is noise, "a dense evaluation is as it is"
    found = forecast.adjusted(3, torch.tensor([[[[5.0, -99.0]]]]), latents, torch.tensor([[0]]))
    expected = 17 + 0.5 * (17 - 12) - 0.25 * (12 - 10) + 0.1 * 17 + 2 * 3
    assert found.tolist() == [[[[5.0, pytest.approx(expected)]]]]


def test_terms_that_are_not_known_yet_are_zero() -> None:
    forecast = FittedForecast((0.0,) * 4 + (1.0, 1.0, 0.0, 0.0), TokenGrid(1, 1, 1), [1.0, 0.5, 0.0])
    noise = torch.full((1, 1, 1, 1), 3.0)
    forecast.adjusted(0, noise, noise, None)
    assert float(forecast.adjusted(1, noise * 0, noise, torch.zeros(1, 0, dtype=torch.long))) == 3


def distance(pipe: Any, config: RASConfig, dense: torch.Tensor, **changes: Any) -> float:
    with ras_dit.accelerate(pipe, config):
        return float((latents_of(pipe, **changes) - dense).norm() / dense.norm())


def test_noise_that_the_terms_can_express_is_forecast_exactly() -> None:
    """The model's noise is a multiple of its latents, which are one of the terms."""
    pipe = tiny_pipeline()
    pipe.transformer.forward = lambda hidden_states, **_: (0.4 * hidden_states,)
    dense = latents_of(pipe)
    fitted = ras_dit.calibrate(pipe, SKIPS, **inputs(batch=2, num_inference_steps=STEPS))
    assert distance(pipe, fitted, dense) < 1e-3 < 5e-3 < distance(pipe, SKIPS, dense)


@pytest.mark.parametrize("config", [SKIPS, REGIONS, REGIONS.replace(solver_order=2)])
def test_a_fit_brings_the_pictures_nearer_to_those_of_the_dense_run(config: RASConfig) -> None:
    pipe = tiny_pipeline()
    with ras_dit.accelerate(pipe, config.dense):
        dense = latents_of(pipe)
    fitted = ras_dit.calibrate(pipe, config, **inputs(batch=2, num_inference_steps=STEPS))
    is_dense = [ratio == 1 for ratio in config.step_ratios]
    shares = [fitted.forecast_fit[4 * index : 4 * index + 4] for index in range(STEPS)]
    assert [not any(share) for share in shares] == is_dense
    assert fitted.replace(forecast_fit=()) == config
    assert distance(pipe, fitted, dense) < 0.9 * distance(pipe, config, dense)


def test_every_picture_counts_alike() -> None:
    """One picture with errors a hundred times as large does not decide for three others."""
    generator = torch.Generator().manual_seed(0)
    terms = torch.randn(4, 2, 500, generator=generator, dtype=torch.float64)
    truth = torch.tensor([[0.5, -1.0]] * 3 + [[3.0, 3.0]], dtype=torch.float64)
    noise = torch.randn(4, 500, generator=generator, dtype=torch.float64)
    wanted = (truth[..., None] * terms).sum(1) + 0.1 * noise
    wanted[3] += 10 * noise[3]
    assert least_error(terms, wanted).tolist() == pytest.approx([0.5, -1.0], abs=0.05)
    together = torch.linalg.lstsq(terms.mT.reshape(-1, 2), wanted.reshape(-1, 1)).solution[:, 0]
    assert float((together - truth[0]).norm()) > 0.5, "plain least squares does let it"
    assert least_error(terms, torch.zeros(4, 500, dtype=torch.float64)).tolist() == [0, 0]


MIXED = RASConfig(step_ratios=(1, 1, 0.25, 1, 0, 0.5, 1, 0), forecast_order=1)


@pytest.mark.parametrize(
    "name",
    [
        "FluxTransformer2DModel",
        "HunyuanVideo15Transformer3DModel",
        "LTXVideoTransformer3DModel",
        "LTX2VideoTransformer3DModel",  # copies its scheduler, for sound
        "LuminaNextDiT2DModel",
        "OmniGenTransformer2DModel",
    ],
)
def test_latents_in_any_form(name: str) -> None:
    case = dict(one_case_per_class())[name]
    pipe, call = case.build(), {**case.call(batch=1, height=6, width=8), "num_inference_steps": STEPS}

    def painted(config: RASConfig | None = None) -> torch.Tensor:
        torch.manual_seed(0)
        if config is None:
            return case.output(pipe(**call))
        with ras_dit.accelerate(pipe, config):
            return case.output(pipe(**call))

    dense, plain = painted(), painted(MIXED)
    torch.manual_seed(0)
    fitted = painted(ras_dit.calibrate(pipe, MIXED, **call))
    assert (fitted - dense).norm() < 0.9 * (plain - dense).norm()


def test_latents_that_hold_more_than_the_tokens_are_refused() -> None:
    case = dict(one_case_per_class())["JoyImageEditPlusTransformer3DModel"]
    call = {**case.call(batch=1, height=6, width=8), "num_inference_steps": STEPS}
    with pytest.raises(ValueError, match="Its latents hold more than the tokens of a picture or video"):
        ras_dit.calibrate(case.build(), MIXED, **call)


def test_computed_tokens_keep_their_noise_and_zeros_change_nothing() -> None:
    pipe = tiny_pipeline()
    with ras_dit.accelerate(pipe, REGIONS) as handle:
        plain = latents_of(pipe)
        active = handle.trace.steps[3].active
    with ras_dit.accelerate(pipe, REGIONS.replace(forecast_fit=(0.0,) * 4 * STEPS)):
        assert torch.equal(latents_of(pipe), plain)
    fit = [0.0] * 4 * STEPS
    fit[4 * 3 + 2] = 7.0
    with ras_dit.accelerate(pipe, REGIONS.replace(forecast_fit=tuple(fit))) as handle:
        assert not torch.allclose(latents_of(pipe), plain)
        assert torch.equal(handle.trace.steps[3].active, active)


def test_other_runs_are_forecast_as_without_it_and_say_so() -> None:
    pipe = tiny_pipeline()
    fitted = SKIPS.replace(forecast_fit=(0.3,) * 4 * STEPS)
    with ras_dit.accelerate(pipe, SKIPS):
        shorter = latents_of(pipe, num_inference_steps=6)
    with ras_dit.accelerate(pipe, fitted) as handle:
        with pytest.warns(ras_dit.RASWarning, match="forecast_fit is of runs of 8 evaluations, this one has 6"):
            assert torch.equal(latents_of(pipe, num_inference_steps=6), shorter)
        assert "Calibrate for this length." in str(handle.summary())
    pipe.scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    with ras_dit.accelerate(pipe, SKIPS):
        multistep = latents_of(pipe)
    with (
        ras_dit.accelerate(pipe, fitted),
        pytest.warns(ras_dit.RASWarning, match="this is UniPCMultistepScheduler: left out"),
    ):
        assert torch.equal(latents_of(pipe), multistep)


def test_the_noise_is_the_same_in_both_runs_and_the_generator_moves_on_once() -> None:
    pipe = tiny_pipeline()
    call = inputs(num_inference_steps=STEPS)
    del call["latents"]
    generator = torch.Generator().manual_seed(5)
    fitted = ras_dit.calibrate(pipe, SKIPS, **call, generator=generator)
    again = ras_dit.calibrate(pipe, SKIPS, **call, generator=[torch.Generator().manual_seed(5)])
    assert fitted == again
    torch.randn(1, 4, 16, 24, generator=(drawn := torch.Generator().manual_seed(5)))
    assert torch.equal(drawn.get_state(), generator.get_state())
    seedless = ras_dit.calibrate(pipe, SKIPS, **call)
    assert seedless == ras_dit.calibrate(pipe, SKIPS, **call, generator=torch.Generator().manual_seed(0))


def test_a_pipeline_is_as_before(tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    before = latents_of(pipe)
    own = dict(vars(pipe.scheduler))
    fitted = ras_dit.calibrate(pipe, SKIPS, **inputs(num_inference_steps=STEPS))
    assert vars(pipe.scheduler).keys() == own.keys()
    assert torch.equal(latents_of(pipe), before)
    for name in ("own.json", "own.yaml"):
        fitted.save(tmp_path / name)
        assert RASConfig.load(tmp_path / name) == fitted
    assert fitted.replace(sample_ratio=0.5).forecast_fit == ()
    assert fitted.replace(forecast_damping=0.1).forecast_fit == fitted.forecast_fit


class Twice(StableDiffusion3Pipeline):
    """Samples twice in one call."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        super().__call__(*args, **kwargs)
        return super().__call__(*args, **kwargs)


def test_what_cannot_be_fitted_is_refused() -> None:
    pipe = tiny_pipeline()
    with pytest.raises(ValueError, match="there is nothing to fit"):
        ras_dit.calibrate(pipe, RASConfig(sample_ratio=1.0), **inputs())
    with pytest.raises(ValueError, match="there is nothing to fit"):
        ras_dit.calibrate(pipe, RASConfig.reference(), **inputs())
    with (
        pytest.raises(ValueError, match=r"no evaluation of this call could be fitted\. The run has 1"),
        pytest.warns(ras_dit.RASWarning, match="all of them dense by the plan"),
    ):
        ras_dit.calibrate(pipe, SKIPS, **inputs(num_inference_steps=1))
    with pytest.raises(ValueError, match="got a call of 2 runs in a row; allowed: a single one"):
        ras_dit.calibrate(tiny_pipeline(pipeline=Twice), SKIPS, **inputs())
    with pytest.raises(ValueError, match="got solver_order=2; allowed: 1, that of this run"):
        DenseRun(pipe, **inputs()).fit(SKIPS.replace(solver_order=2))
    pipe.scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    with pytest.raises(ValueError, match="got UniPCMultistepScheduler; allowed: FlowMatchEuler"):
        ras_dit.calibrate(pipe, SKIPS, **inputs())
    for fit, words in (
        ((float("nan"),), "finite numbers"),
        ((1.0,) * 3, "got 3 numbers; allowed: 4 per evaluation"),
    ):
        with pytest.raises(ValueError, match=words):
            SKIPS.replace(forecast_fit=fit)
    with pytest.raises(ValueError, match="the reference rules have no such option"):
        RASConfig.reference().replace(forecast_fit=(0.0,) * 4)


def test_presets_and_files_are_taken_as_by_enable(tmp_path: Path) -> None:
    pipe, call = tiny_pipeline(), inputs(batch=1, num_inference_steps=STEPS)
    fitted = ras_dit.calibrate(pipe, "balanced", **call)
    assert fitted.replace(forecast_fit=()) == ras_dit.PRESETS["balanced"]
    ras_dit.PRESETS["balanced"].save(tmp_path / "plan.yaml")
    run = DenseRun(pipe, **call)
    assert run.fit("balanced") == run.fit(tmp_path / "plan.yaml") == run.fit() == fitted
    with pytest.raises(ValueError, match="preset: got 'balenced'"):
        ras_dit.calibrate(pipe, "balenced", **call)
