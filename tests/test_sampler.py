"""The sampler's options, each on its own: tensors by hand, then what a run makes of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

import ras_dit
from ras_dit import RASConfig, TokenGrid, build_plan
from ras_dit.arena import AdamsBashforth2Scheduler
from ras_dit.calls import Branch, Call
from ras_dit.chooser import TokenChooser
from ras_dit.clocks import Stopwatch
from ras_dit.filling import NoiseFiller
from ras_dit.forecast import TokenHistory, missed_nearby
from ras_dit.importance import anchors, displacement_metric, filtered, predicted_error
from ras_dit.kv_forecast import KVAdvance, KVProgress
from ras_dit.selection import membership
from ras_dit.trace import StepTrace
from tiny import REGION, inputs, run, tiny_pipeline


def test_filters_look_at_the_neighbours_of_the_same_frame() -> None:
    grid = TokenGrid(3, 4, 2, num_frames=2)
    score = torch.zeros(1, 24)
    score[0, 5] = 9.0  # frame 0, row 1, column 1
    spread = filtered(score, grid, "dilate").view(2, 3, 4)
    assert torch.equal(spread[0, :, :3], torch.full((3, 3), 9.0))
    assert spread[0, :, 3].sum() == 0
    assert spread[1].sum() == 0
    mean = filtered(score, grid, "blur").view(2, 3, 4)
    assert mean[0, 1, 1] == 1.0
    assert mean[0, 0, 0] == pytest.approx(9 / 4), "a corner has four tokens"
    assert mean[0, 0, 1] == pytest.approx(9 / 6), "a border six"


@pytest.mark.parametrize("stride", [2, 3, 4, 5])
def test_anchors_come_by_every_token_in_turn(stride: int) -> None:
    grid = TokenGrid(2 * stride, 3 * stride, 2, num_frames=2)
    masks = torch.stack([anchors(grid, stride, index) for index in range(stride**2)])
    assert (masks.sum(dim=1) == 2 * 6).all(), "one per cell and frame"
    assert (masks.sum(dim=0) == 1).all(), "every token once in a round"


def test_what_was_missed_nearby_by_hand() -> None:
    grid = TokenGrid(1, 4, 2)
    missed = torch.tensor([[[2.0], [100.0], [6.0], [100.0]]])
    is_active = torch.tensor([[True, False, True, False]])
    nearby = missed_nearby(missed, is_active, grid)
    assert nearby.flatten().tolist() == [2.0, 4.0, 6.0, 6.0]
    assert missed_nearby(missed, torch.zeros_like(is_active), grid).abs().sum() == 0


def test_neighbours_take_a_share_of_what_the_forecast_missed() -> None:
    """Noise was 1; the token in the middle is computed as 5, and 4 were missed there."""
    grid = TokenGrid(1, 3, 1)
    config = REGION.replace(neighbor_update=0.5)
    sigmas = [1.0, 0.75, 0.5, 0.25, 0.0]
    filler = NoiseFiller(config, build_plan(config, 4, grid.num_tokens), grid, sigmas, sigmas, None, num_extra=0)
    branch, stopwatch = Branch(1, None, TokenHistory(depth=1)), Stopwatch(StepTrace("dense", 1.0), torch.device("cpu"))
    dense = Call("dense", branch, None, None, False, stopwatch, grid.num_tokens)
    assert filler.full_noise(dense, branch, torch.ones(1, 1, 1, 3), 1) is None, "it stays as it is"
    region = Call("region", branch, None, torch.tensor([[False, True, False]]), False, stopwatch, grid.num_tokens)
    filled = filler.full_noise(region, branch, torch.tensor([[[[99.0, 5.0, -99.0]]]]), 2)
    assert filled is not None
    assert filled.tolist() == [[[[3.0, 5.0, 3.0]]]]


def history() -> TokenHistory:
    """Two tokens on the line 10 - 10 sigma: the first computed at 0.9 and 0.8, the second at 0.9 and 0.5."""
    seen = TokenHistory(depth=2)
    seen.record(torch.full((1, 2, 1), 1.0), 0.9)
    seen.record(torch.full((1, 2, 1), 2.0), 0.8, torch.tensor([[True, False]]))
    seen.record(torch.full((1, 2, 1), 5.0), 0.5, torch.tensor([[False, True]]))
    return seen


def test_a_slope_reaches_as_far_as_it_was_measured() -> None:
    far = history().forecast(0.2, order=1, damping=1.0)
    assert far.flatten().tolist() == pytest.approx([8.0, 8.0])
    near = history().forecast(0.2, order=1, damping=1.0, reach=1.0)
    assert near.flatten().tolist() == pytest.approx([3.0, 8.0]), "0.1 and 0.3 further, as far as their slopes"
    assert history().forecast(0.2, order=1, damping=1.0, reach=2.0).flatten()[0] == pytest.approx(4.0)
    once = TokenHistory(depth=2)
    once.record(torch.ones(1, 1, 1), 0.9)
    assert once.forecast(0.2, order=1, damping=1.0, reach=1.0).item() == 1.0


def test_a_listed_plan_fits_runs_of_any_length() -> None:
    config = RASConfig(step_ratios=(1, 0.5, 0, 1, 0.25))
    plan = build_plan(config, 5, 40)
    assert [step.num_active for step in plan] == [40, 20, 0, 40, 10]
    assert [step.kind for step in plan] == ["dense", "region", "skip", "dense", "region"]
    assert [step.index for step in plan if step.captures] == [0, 3]
    longer = build_plan(config, 9, 40)
    assert [step.num_active for step in longer] == [40, 20, 40, 40, 0, 20, 40, 10, 10], "4 of 9 dense, as 2 of 5"
    assert [step.num_active for step in build_plan(config, 3, 40)] == [40, 40, 10]
    all_regions = build_plan(RASConfig(step_ratios=(1, 0.5, 0.5, 1, 0.25)), 9, 40)
    assert [step.num_active for step in all_regions] == [40, 20, 40, 20, 40, 20, 40, 10, 10]
    assert build_plan(config, 1, 40)[0].kind == "dense"
    assert build_plan(config, 5, 40, dense_step=2)[2].kind == "dense"
    assert not build_plan(RASConfig(step_ratios=(1, 1)), 7, 40).has_savings


@given(st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]), max_size=40), st.integers(1, 90))
def test_a_stretched_plan_keeps_its_share_of_dense_steps(rest: list[float], num_steps: int) -> None:
    ratios = (1.0, *rest)
    plan = build_plan(RASConfig(step_ratios=ratios), num_steps, 40)
    dense = [step.index for step in plan if step.kind == "dense"]
    assert dense[0] == 0
    assert len(dense) == math.ceil(ratios.count(1.0) * num_steps / len(ratios))
    assert {step.num_active / 40 for step in plan} <= {1.0, *ratios}


@pytest.mark.parametrize("num_steps", [20, 28, 50, 100])
def test_region_steps_stay_between_dense_ones_in_a_stretched_plan(num_steps: int) -> None:
    ratios = tuple({"D": 1.0, "r": 0.5, ".": 0.0}[kind] for kind in "DDDD..r..D..r..D..r..D..r..D")
    plan = build_plan(RASConfig(step_ratios=ratios), num_steps, 40)
    kinds = "".join(step.kind[0] for step in plan)
    num_dense, num_regions = math.ceil(8 * num_steps / 28), round(4 * num_steps / 28)
    assert (kinds.count("d"), kinds.count("r")) == (num_dense, num_regions)
    warm = num_steps * 3 // 28
    assert kinds[:warm] == "d" * warm
    later = kinds[warm:].replace("s", "")
    assert "rrr" not in later
    assert "ddd" not in later.lstrip("d")


def test_a_listed_plan_runs() -> None:
    pipe = tiny_pipeline()
    listed = RASConfig(step_ratios=(1, 1, 0.25, 0, 1, 0.25, 0.25, 0, 1, 0.5))
    with ras_dit.accelerate(pipe, listed) as handle:
        run(pipe, **inputs())
    assert [step.kind[0] for step in handle.trace.steps] == list("ddrsdrrsdr")
    assert handle.trace.token_steps == pytest.approx(sum(listed.step_ratios))
    same = {"warmup_steps": 2, "sample_ratio": 0.25, "refresh_steps": (4, 8), "skip_steps": (3, 7)}
    with ras_dit.accelerate(pipe, RASConfig(**same, end_step=8)):  # type: ignore[arg-type]
        described = run(pipe, **inputs())
    with ras_dit.accelerate(pipe, listed.replace(step_ratios=(*listed.step_ratios[:-1], 1))):
        assert torch.equal(run(pipe, **inputs()), described)


CHANGES: list[dict[str, Any]] = [
    {"score_filter": "blur"},
    {"score_filter": "dilate"},
    {"anchor_stride": 3},
    {"neighbor_update": 0.5},
    {"text_reuse": True},
    {"forecast_order": 1, "forecast_below": 0.8},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
@pytest.mark.parametrize("importance", ["error", "std"])
def test_an_option_changes_the_picture_and_not_the_compute(change: dict[str, Any], importance: Any) -> None:
    pipe, call = tiny_pipeline(), inputs(batch=2)
    outputs = []
    for config in (REGION.replace(importance=importance), REGION.replace(importance=importance, **change)):
        with ras_dit.accelerate(pipe, config) as handle:
            outputs.append(run(pipe, **call))
        assert handle.trace.token_steps == pytest.approx(2 + 8 * 0.25)
    assert outputs[1].isfinite().all()
    assert not torch.equal(outputs[0], outputs[1])


@pytest.mark.parametrize("importance", ["error", "std"])
def test_anchors_are_computed_whatever_the_score(importance: Any) -> None:
    pipe = tiny_pipeline()
    with ras_dit.accelerate(pipe, REGION.replace(importance=importance, anchor_stride=4)) as handle:
        run(pipe, **inputs())
    grid = handle.trace.grid
    assert grid is not None
    region = [step.active for step in handle.trace.steps if step.active is not None]
    assert len(region) == 8
    for turn, active in enumerate(region):
        wanted = anchors(grid, 4, turn).nonzero().flatten()
        assert len(wanted) == 6
        assert torch.isin(wanted, active[0]).all()


def test_round_robin_comes_by_every_token_in_one_order() -> None:
    """96 tokens, 24 at a time: all in four steps, then the first ones again. A dense step begins the round anew."""
    pipe = tiny_pipeline()
    with ras_dit.accelerate(pipe, REGION.replace(importance="round_robin", refresh_steps=(8,))) as handle:
        run(pipe, **inputs(num_inference_steps=12))
    masks = handle.trace.masks()
    assert (masks[2:6].sum(dim=0) == 1).all()
    assert torch.equal(masks[6:8], masks[2:4])
    assert masks[8].all()
    assert torch.equal(masks[9:12], masks[2:5])


def chooser_of(
    config: RASConfig, grid: TokenGrid, num_first: int = 0, sigmas: Sequence[float] = (1.0, 0.5, 0.25, 0.125, 0.0)
) -> TokenChooser:
    """For a run at these noise levels."""
    plan = build_plan(config, len(sigmas) - 1, grid.num_tokens, num_first)
    return TokenChooser(config, plan, grid, list(sigmas), lambda *_, **__: None, num_first)


@pytest.mark.parametrize("importance", ["std", "l2norm"])
def test_of_tokens_with_the_same_noise_those_that_waited_are_chosen(importance: Any) -> None:
    chooser = chooser_of(REGION.replace(importance=importance, sample_ratio=0.5), TokenGrid(2, 4, 2))
    noise = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 4, 8)
    first, second = [0, 1, 2, 3], [4, 5, 6, 7]
    chooser.learn(noise, 0, None)
    chooser.learn(noise, 1, membership(torch.tensor([first]), 8))
    assert chooser.choose(noise, noise, 2).tolist() == [second]
    chooser.learn(noise, 2, membership(torch.tensor([second]), 8))
    assert chooser.choose(noise, noise, 3).tolist() == [first]


@pytest.mark.parametrize(("high_ratio", "expected"), [(1.0, [0, 1, 2, 3]), (0.5, [2, 3, 4, 5]), (0.0, [4, 5, 6, 7])])
def test_high_ratio_says_how_many_are_dropped_at_either_end(high_ratio: float, expected: list[int]) -> None:
    """Of eight tokens in the order of their spread over channels four are dropped."""
    config = REGION.replace(importance="std", sample_ratio=0.5, high_ratio=high_ratio)
    chooser, spread = chooser_of(config, TokenGrid(1, 8, 1)), torch.arange(1.0, 9.0)
    noise = torch.stack([spread, -spread]).view(1, 2, 1, 8)
    for index in range(2):
        chooser.learn(noise, index, None)
    assert chooser.choose(noise, noise, 2).tolist() == [expected]


def test_how_far_the_noise_will_be_off_is_that_of_the_worst_image() -> None:
    """Two images of two tokens. In the last 0.5 of sigma they changed by 3 and 4, and by 0 and 4, and became 3 and 4;
    in the next 0.25 half of that is to be expected of what is not computed."""
    chooser = chooser_of(REGION.replace(refresh_tolerance=0.1, sample_ratio=0.5), TokenGrid(1, 2, 1))
    chooser.learn(torch.tensor([[0.0, 0.0], [3.0, 0.0]]).view(2, 1, 1, 2), 0, None)
    chooser.learn(torch.tensor([[3.0, 4.0], [3.0, 4.0]]).view(2, 1, 1, 2), 1, None)
    assert chooser.predicted_error(2, None) == pytest.approx(2.5 / 5), "the first: 1.5 and 2 of 3 and 4"
    assert chooser.predicted_error(2, torch.tensor([[1], [0]])) == pytest.approx(2 / 5), "the second: 0 and 2"
    assert chooser.predicted_error(2, torch.tensor([[1], [1]])) == pytest.approx(1.5 / 5)


@pytest.mark.parametrize("num_first", [0, 5])
def test_tokens_that_are_always_computed_are_not_dropped_at_the_low_end(num_first: int) -> None:
    """`high_ratio` below 1 drops some of the tokens that are ranked first; not those that every step has to compute."""
    grid = TokenGrid(6, 8, 2)
    config = REGION.replace(importance="std", high_ratio=0.5, anchor_stride=None if num_first else 4)
    chooser = chooser_of(config, grid, num_first, [1 - index / 10 for index in range(11)])
    noise = torch.randn(2, 4, 12, 16, generator=torch.Generator().manual_seed(0))
    for index in range(2):
        chooser.learn(noise, index, None)
    active = chooser.choose(noise, noise, 2)
    always = list(range(num_first)) or anchors(grid, 4, 0).nonzero().flatten().tolist()  # in the first region step
    assert always
    num_active = chooser.plan[2].num_active
    num_low, num_others = (grid.num_tokens - num_active) // 2, num_active - len(always)
    ranked = displacement_metric(noise, grid, "std").argsort(dim=1).tolist()
    for chosen, order in zip(active.tolist(), ranked, strict=True):
        others = [token for token in order if token not in always]
        assert chosen == sorted(always + others[num_low : num_low + num_others])


def test_forecasts_begin_below_a_noise_level() -> None:
    """Above it the last noise is reused, exactly as without a forecast."""
    pipe = tiny_pipeline()
    plain, forecast = REGION, REGION.replace(forecast_order=1, forecast_damping=1.0, kv_forecast=0.7)
    outputs = {}
    for name, config in {
        "plain": plain,
        "never": forecast.replace(forecast_below=1e-9),
        "always": forecast,
    }.items():
        with ras_dit.accelerate(pipe, config):
            outputs[name] = run(pipe, **inputs())
    torch.testing.assert_close(outputs["never"], outputs["plain"], atol=1e-5, rtol=0)
    assert not torch.allclose(outputs["always"], outputs["plain"], atol=1e-3)


def test_forecasts_begin_below_a_noise_level_where_sigmas_rise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Schedulers of Mochi and OmniGen count from 0, which is noise, to 1."""
    pipe = tiny_pipeline(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, invert_sigmas=True))
    orders: dict[float, int] = {}
    dampings: dict[float, float] = {}
    advance = KVProgress.advance

    def watched(progress: KVProgress, sigma: float, damping: float, reach: float | None) -> KVAdvance:
        dampings[sigma] = damping
        return advance(progress, sigma, damping, reach)

    def look(_pipe: Any, _index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        generation = handle._session._generation
        assert generation is not None
        if not generation.is_over:
            orders[generation.sigmas[generation.index]] = generation.forecast_rule.order
        return tensors

    monkeypatch.setattr(KVProgress, "advance", watched)
    config = REGION.replace(forecast_order=1, forecast_below=0.5, kv_forecast=0.7)
    with ras_dit.accelerate(pipe, config) as handle:
        run(pipe, **inputs(callback_on_step_end=look))
    sigmas = pipe.scheduler.sigmas.tolist()[1:-1]
    assert sigmas == sorted(sigmas)
    assert orders == {sigma: int(1 - sigma < 0.5) for sigma in sigmas}
    assert set(orders.values()) == {0, 1}
    assert dampings == {sigma: 0.7 * orders[sigma] for sigma in sigmas}


def test_steps_that_would_be_far_off_are_dense() -> None:
    pipe, call = tiny_pipeline(), inputs(batch=2)
    counts = []
    for tolerance in (None, 1e9, 2.0, 1e-9):
        with ras_dit.accelerate(pipe, REGION.replace(refresh_tolerance=tolerance, skip_steps=(6,))) as handle:
            output = run(pipe, **call)
        kinds = [step.kind for step in handle.trace.steps]
        counts.append(kinds.count("dense"))
        is_said = any("refresh_tolerance" in note for note in handle.summary().notes)
        assert is_said == (counts[-1] > 2)
    assert counts[:2] == [2, 2]
    assert 2 < counts[2] < 10
    assert counts[3] == 10
    assert torch.equal(output, run(pipe, **call)), "all dense is the untouched pipeline"
    assert handle.summary().speedup_limit == pytest.approx(1.0)
    assert handle.summary().predicted_speedup == pytest.approx(1.0)


def test_second_order_takes_hold_of_dense_steps_alone_too() -> None:
    pipe = tiny_pipeline()
    euler = run(pipe, **inputs())
    pipe.scheduler = AdamsBashforth2Scheduler.from_config(pipe.scheduler.config)
    by_hand = run(pipe, **inputs())
    pipe = tiny_pipeline()
    for config in (RASConfig(sample_ratio=1.0, solver_order=2), RASConfig(warmup_steps=99, solver_order=2)):
        with ras_dit.accelerate(pipe, config):
            torch.testing.assert_close(run(pipe, **inputs()), by_hand, rtol=1e-4, atol=1e-4)
    assert (euler - by_hand).norm() > 0.05 * euler.norm()


def test_anchors_take_turns_from_region_step_to_region_step() -> None:
    """Not from evaluation to evaluation: where every other one is skipped, some places would never be computed."""
    pipe = tiny_pipeline()
    config = RASConfig(step_ratios=(1.0, 1.0, *(0.25, 0.0) * 4), anchor_stride=2)
    with ras_dit.accelerate(pipe, config) as handle:
        run(pipe, **inputs())
    masks = handle.trace.masks()[[2, 4, 6, 8]]
    assert (masks.sum(dim=0) == 1).all(), "a quarter of the tokens in each, all of them in four"


def test_tokens_are_told_apart_between_two_evaluations_at_one_noise_level() -> None:
    """Heun's second evaluation lies where the first one of the next step does."""
    seen = TokenHistory(depth=2)
    seen.record(torch.tensor([[[0.0], [0.0], [0.0], [0.0]]]), 0.9)
    seen.record(torch.tensor([[[1.0], [3.0], [2.0], [4.0]]]), 0.8)
    error = predicted_error(seen, 0.8)
    assert error.argsort(descending=True).tolist() == [[3, 1, 2, 0]]
    assert float(error.max()) < 1e-3, "no error to speak of"

    pipe = tiny_pipeline(scheduler=FlowMatchHeunDiscreteScheduler(shift=3.0))
    with ras_dit.accelerate(pipe, RASConfig(sample_ratio=0.25, warmup_steps=4)) as handle:
        run(pipe, **inputs())
    sigmas = [step.sigma for step in handle.trace.steps]
    (first,) = handle.trace.steps[4].active
    assert sigmas[3] == sigmas[4]
    assert first.tolist() != list(range(24)), "not the top of the picture"
