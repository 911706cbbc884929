"""Plans found on dense runs: what the simulation says is what would have happened, and the search keeps its limits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import UniPCMultistepScheduler

import ras_dit
from ras_dit import PRESETS, RASConfig, TokenGrid
from ras_dit.dense_runs import Choices, NoiseRecorder, RecordedRun, SameRuns
from ras_dit.plan import build_plan
from ras_dit.plan_search import NUM_TICKS, is_sound, max_gap, num_first, search
from tiny import inputs, run, tiny_pipeline

STEPS = 16
SKIPS = (1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0)
REGIONS = RASConfig(sample_ratio=0.5, forecast_order=1)


def call(**changes: Any) -> dict[str, Any]:
    return inputs(**{"batch": 2, "num_inference_steps": STEPS, **changes})


def deaf_pipeline() -> Any:
    """Its noise follows the timestep and hears nothing of the latents."""
    pipe = tiny_pipeline()
    pattern = torch.randn(3, 1, 4, 16, 24, generator=torch.Generator().manual_seed(0))

    def forward(hidden_states: torch.Tensor, timestep: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        at = timestep.flatten()[0] / 1000
        noise = pattern[0] + (3 * at).sin() * pattern[1] + at**3 * pattern[2]
        return (noise.expand_as(hidden_states),)

    pipe.transformer.forward = forward
    return pipe


def record_run(pipe: Any, config: RASConfig, **arguments: Any) -> RecordedRun:
    return SameRuns(pipe, config, arguments).recorded()


def test_the_simulation_is_exact_where_noise_hears_nothing_of_the_latents() -> None:
    pipe = deaf_pipeline()
    config = RASConfig(step_ratios=SKIPS, forecast_order=1, forecast_damping=0.7, forecast_below=0.93)
    recorded = record_run(pipe, config, **call())
    assert recorded.growth == pytest.approx([1.0] * STEPS, rel=1e-3), "errors stay as they are"
    latents = call(output_type="latent")
    dense = run(pipe, **latents)
    with ras_dit.accelerate(pipe, config):
        skipped = run(pipe, **latents)
    squared = (skipped - dense).square().mean(dim=(1, 2, 3))
    assert recorded.nearness(Choices(SKIPS), config) == pytest.approx(float(-10 * squared.log10().mean()), abs=1e-3)


def test_growth_is_what_the_model_makes_of_an_error() -> None:
    """Noise that is 0.4 of the latents: an error shrinks by 0.4 of every step that follows."""
    pipe = tiny_pipeline()
    pipe.transformer.forward = lambda hidden_states, **_: (0.4 * hidden_states,)
    recorded = record_run(pipe, REGIONS, **call())
    for index in (1, 3, 5, 13):
        follows = [recorded.sigmas[i + 1] - recorded.sigmas[i] for i in range(index + 1, STEPS)]
        expected = math.prod(1 + 0.4 * length for length in follows)
        assert recorded.growth[index] == pytest.approx(expected, rel=0.02)


def test_old_keys_cost_a_region_step_something() -> None:
    """Keys and values that stay as they were cost something; carried on they cost less."""
    recorded = record_run(deaf_pipeline(), REGIONS, **call())
    regions = Choices(tuple(0.75 if share == 0 else share for share in SKIPS))
    reused, carried = (recorded.nearness(regions, REGIONS.replace(kv_forecast=damping)) for damping in (0.0, 0.8))
    assert (
        recorded.nearness(Choices(SKIPS), REGIONS) < reused < carried < recorded.nearness(Choices((1.0,) * 16), REGIONS)
    )


def test_of_very_large_noise_some_of_the_tokens_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """384 numbers, of which 60 may be kept: those of every seventh token. Latents are kept whole."""
    monkeypatch.setattr("ras_dit.dense_runs.MAX_VALUES", 60)
    grid, noise = TokenGrid(4, 4, 2), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    recorder, tokens = NoiseRecorder(grid, [1.0, 0.75, 0.5, 0.25, 0.0]), grid.patchify(noise)
    for index in range(4):
        assert recorder.adjusted(index, noise, 2 * noise, None) is noise
        assert torch.equal(recorder.noise[index], tokens[:, [0, 7, 14]])
    torch.testing.assert_close(recorder.latents[3], 1.75 * tokens)


def test_costs_are_those_of_the_plan() -> None:
    pipe = tiny_pipeline()
    recorded = record_run(pipe, REGIONS, **call())
    shares = (1.0, 1.0, 1.0, 0.5, 0.25, 0.0, 1.0, *[0.75] * 9)
    with ras_dit.accelerate(pipe, Choices(shares).config(REGIONS)) as handle:
        run(pipe, **call())
        assert handle.latest_plan is not None
        assert recorded.cost(shares) == pytest.approx(1 / handle.latest_plan.speedup_limit)


def test_the_plan_found_is_cheap_enough_better_than_regular_steps_and_found_again() -> None:
    pipe = tiny_pipeline()
    ticks: list[int] = []
    found = ras_dit.find_plan(
        pipe, 0.5, REGIONS, num_moves=200, on_progress=lambda: ticks.append(1), **call(num_inference_steps=STEPS)
    )
    assert len(ticks) == NUM_TICKS
    assert found == ras_dit.find_plan(pipe, 0.5, REGIONS, num_moves=200, **call())
    recorded, runs = record_run(pipe, REGIONS, **call()), SameRuns(pipe, REGIONS, call())
    plan = runs.costed(build_plan(found, STEPS, runs.dense.grid.num_tokens))
    assert 1 / plan.speedup_limit <= 0.5
    regular = search(recorded, REGIONS, 0.5, num_moves=0)
    assert sum(regular.shares) == STEPS // 2
    searched = search(recorded, REGIONS, 0.5, num_moves=200)
    assert recorded.cost(searched.shares) <= 0.5
    assert is_sound(searched.shares)
    assert recorded.nearness(searched, REGIONS) > recorded.nearness(regular, REGIONS) + 0.5
    assert runs.nearness(found) >= runs.nearness(searched.config(REGIONS))
    with ras_dit.accelerate(pipe, found) as handle:
        run(pipe, **call())
        assert [step.kind for step in handle.trace.steps].count("dense") == found.step_ratios.count(1)


def test_a_plan_that_is_better_already_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever really comes nearest, of the plans found and the config's own (only if that is as cheap)."""
    own = RASConfig(step_ratios=SKIPS, forecast_order=1)
    monkeypatch.setattr(SameRuns, "nearness", lambda _, config: 9.0 if config == own else 1.0)
    assert ras_dit.find_plan(tiny_pipeline(), 0.5, own, num_moves=50, **call()) == own
    assert ras_dit.find_plan(tiny_pipeline(), 0.45, own, num_moves=50, **call()) != own


def test_plans_of_presets_are_run_beside_those_that_were_found(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[RASConfig] = []
    monkeypatch.setattr(SameRuns, "nearness", lambda _, config: seen.append(config) or 0.0)
    ras_dit.find_plan(tiny_pipeline(), 0.45, REGIONS, num_moves=20, **call())
    runs = SameRuns(tiny_pipeline(), REGIONS, call())
    plans = {name: runs.costed(build_plan(RASConfig.preset(name), STEPS, 64)) for name in PRESETS}
    costs = {name: 1 / plan.speedup_limit for name, plan in plans.items()}
    cheap = sorted((cost, name) for name, cost in costs.items() if cost <= 0.45)
    assert 2 < len(cheap) < len(PRESETS)
    for place, (_, name) in enumerate(cheap):
        shares = tuple(step.num_active / 64 for step in plans[name])
        is_tried = shares in [config.step_ratios for config in seen]
        assert is_tried == (place >= len(cheap) - 2), "those that use the cost best, and cost no more"
    seen.clear()
    ras_dit.find_plan(tiny_pipeline(), 0.45, "balanced", num_moves=20, **call())
    assert all(set(config.step_ratios) <= {0.0, 1.0} for config in seen)


def test_nearness_of_a_run_is_that_of_its_latents() -> None:
    pipe = tiny_pipeline()
    runs = SameRuns(pipe, REGIONS, call())
    dense = run(pipe, **call(output_type="latent"))
    with ras_dit.accelerate(pipe, REGIONS):
        other = run(pipe, **call(output_type="latent"))
    squared = (other - dense).square().mean(dim=(1, 2, 3))
    assert runs.nearness(REGIONS) == pytest.approx(float(-10 * squared.log10().mean()), abs=1e-3)


def test_a_config_without_regions_gets_a_plan_without() -> None:
    found = ras_dit.find_plan(tiny_pipeline(), 0.5, "balanced", num_moves=100, **call())
    assert set(found.step_ratios) == {0.0, 1.0}
    assert found.kv_forecast == 0


def test_it_repeats_the_noise_of_a_generator_and_leaves_the_pipeline_as_it_was() -> None:
    pipe = tiny_pipeline()
    arguments = {name: value for name, value in call().items() if name != "latents"}
    generator = torch.Generator().manual_seed(4)
    found = ras_dit.find_plan(pipe, 0.5, REGIONS, num_moves=50, generator=generator, **arguments)
    again = ras_dit.find_plan(pipe, 0.5, REGIONS, num_moves=50, generator=torch.Generator().manual_seed(4), **arguments)
    assert found == again
    ras_dit.enable(pipe, REGIONS).disable()


@pytest.mark.parametrize("num_steps", [4, 7, 10, 20, 28, 50, 100])
def test_first_plans_are_sound(num_steps: int) -> None:
    run_ = RecordedRun(
        tuple(1 - i / num_steps for i in range(num_steps + 1)),
        torch.randn(num_steps, 1, 6, 2, generator=torch.Generator().manual_seed(0)),
        (1.0,) * num_steps,
        {1.0: 1.0, 0.5: 0.5, 0.0: 0.0},
    )
    for cost in (0.8, 0.9):
        found = search(run_, REGIONS, cost, num_moves=30)
        assert is_sound(found.shares)
        assert run_.cost(found.shares) <= cost
    with pytest.raises(ValueError, match=r"cost: got 0.01, \d dense evaluations of .*; allowed: at least 0\."):
        search(run_, REGIONS, 0.01)


def test_what_counts_as_sound() -> None:
    assert (num_first(28), max_gap(28)) == (3, 8)
    plan = [1.0] * 28
    assert is_sound(plan)
    assert not is_sound([*plan[:2], 0.0, *plan[3:]]), "the first three are dense"
    assert is_sound([*plan[:10], 0.5, 0.5, *plan[12:]])
    assert not is_sound([*plan[:10], 0.5, 0.5, 0.5, *plan[13:]]), "three regions in a row"
    assert is_sound([*plan[:10], *[0.0] * 7, *plan[17:]])
    assert not is_sound([*plan[:10], *[0.0] * 8, *plan[18:]]), "too long without a dense one"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cost": 1.5}, "cost: got 1.5; allowed: a share"),
        ({"config": RASConfig(sample_ratio=0.5, solver_order=2)}, "allowed: first-order steps, our rules"),
        ({"config": RASConfig.reference(0.5)}, "allowed: first-order steps, our rules"),
        ({"num_inference_steps": 3}, "got a run of 3 evaluations; allowed: at least 4"),
    ],
)
def test_bad_input(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ras_dit.find_plan(tiny_pipeline(), **{"cost": 0.5, **call(), **changes})


def test_other_schedulers_are_refused() -> None:
    pipe = tiny_pipeline()
    pipe.scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    with pytest.raises(ValueError, match="find_plan: got UniPCMultistepScheduler; allowed: FlowMatchEuler"):
        ras_dit.find_plan(pipe, 0.5, **call())


def test_too_low_a_cost_is_refused_after_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def recorded(*_: Any) -> None:
        raise AssertionError("more runs were made")

    monkeypatch.setattr(SameRuns, "recorded", recorded)
    with pytest.raises(ValueError, match=r"cost: got 0.1, 1 dense evaluations of 16; allowed: at least 0\."):
        ras_dit.find_plan(tiny_pipeline(), 0.1, **call())
