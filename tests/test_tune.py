"""Tuning: targets by hand, a search that resumes and prunes, plans that stay plans, winners checked elsewhere."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.image_processor import VaeImageProcessor
from hypothesis import given, settings
from hypothesis import strategies as st

import ras_dit
from ras_dit import PRESETS, RASConfig, build_plan
from ras_dit.arena import Scene
from ras_dit.arena.methods import Method
from ras_dit.arena.metrics import MAX_PSNR, quantile_interval
from ras_dit.arena.perceptual import Perceptual
from ras_dit.config_checks import PLAN_OPTIONS
from ras_dit.files import alone_in
from ras_dit.models import TOKEN_PLANS
from ras_dit.presets import described
from ras_dit.remarks import RASWarning
from ras_dit.tune import PSNR, SSIM, Floor, Metric, Target, Tuning, lpips, write_report
from ras_dit.tune.measure import Bench, Measured, SceneSet
from ras_dit.tune.plans import (
    MOVES,
    check_ratios,
    config_of_ratios,
    join,
    neighbour,
    ratios_of,
    shift_region,
    split,
)
from ras_dit.tune.search import Search, known_for
from ras_dit.tune.shape import FROM_STEP, GROWTHS, MAX_TAIL, Shape
from ras_dit.tune.space import SPACE, UNSEARCHED, Run, Space, known_good
from ras_dit.tune.trial import Trial, best_of, candidates_of, front_of
from ras_dit.tune.tuning import Outcome, claim_of
from ras_dit.tune.validate import Validation, Verdict
from ras_dit.versions import versions
from stand_ins import lpips_file
from tiny import TEXT_LENGTH, TEXT_WIDTH, tiny_pipeline, tiny_vae

optuna = pytest.importorskip("optuna")
NUM_TOKENS, NUM_STEPS = 64, 12
RUN = Run(NUM_STEPS, NUM_TOKENS, is_euler=True)
SCENES = tuple(Scene(f"scene {i}", i) for i in range(8))
HARDNESS = (-6.0, 3.0, 5.0, -2.0, 0.0, 2.0, -3.0, 1.0)  # a mean of 0
FLOOR_30 = Target((Floor(PSNR, 30.0),), cost="token_steps")


class FormulaBench(Bench):
    """A pipeline whose quality is arithmetic: 60 dB times the root of T, 5 dB less without the predicted error, and
    every picture harder or easier than that."""

    painted: list[tuple[RASConfig | None, int]]

    @classmethod
    def new(cls, offset: float = 0.0) -> FormulaBench:
        bench = cls(None, {}, NUM_STEPS, 1, (PSNR, SSIM), is_timed=False)
        object.__setattr__(bench, "painted", [])
        object.__setattr__(bench, "offset", offset)
        return bench

    def plan(self, config: RASConfig) -> Any:
        return build_plan(config, NUM_STEPS, NUM_TOKENS)

    def measure(self, method: Method, on: SceneSet, is_hopeless: Any = lambda found: False, num_timed: int = 3) -> Any:
        assert method.config is not None
        share = self.plan(method.config).token_steps / NUM_STEPS
        level = 60 * share**0.5 - 5 * (method.config.importance != "error") + self.offset  # type: ignore[attr-defined]
        found = Measured({"psnr": [], "ssim": []}, {"flops": share, "token_steps": share})
        for hardness in HARDNESS:
            found.per_picture["psnr"].append(level + hardness)
            found.per_picture["ssim"].append(0.5)
            if is_hopeless(found):
                break
        self.painted.append((method.config, found.num_pictures))
        return found


def search(folder: Path, bench: Bench | None = None, target: Target = FLOOR_30, **space: Any) -> Search:
    on = SceneSet(SCENES, torch.zeros(8, 3, 12, 12, dtype=torch.uint8))
    where = Space(**{"run": RUN, "base": RASConfig(), **space})
    return Search(folder, bench or FormulaBench.new(), on, target, where, seed=3)


def trial(config: RASConfig, quality: float, cost: float) -> Trial:
    return Trial("", "options", config, "measured", "", None, {"psnr": quality, "ssim": 0.9}, cost)


# ---------------------------------------------------------------------- targets


def test_floors_and_budgets_by_hand() -> None:
    floors = Target((Floor(PSNR, 36.0), Floor(SSIM, 0.9)))
    assert [metric.name for metric in floors.metrics] == ["psnr", "ssim"]
    assert floors.misses({"psnr": 33.0, "ssim": 0.93}, 0.4) == pytest.approx({"psnr": 1.0, "ssim": -1.0})
    assert not floors.is_met({"psnr": 33.0, "ssim": 0.93}, 0.4)
    assert floors.is_met({"psnr": 36.0, "ssim": 0.9}, 0.99)
    assert floors.score({"psnr": 50.0, "ssim": 0.99}, 0.4) == 0.4
    assert floors.rank({"psnr": 33.0, "ssim": 0.87}, 0.4) == pytest.approx((2.0, 0.4)), "both are missed by one scale"
    assert floors.rank({"psnr": 50.0, "ssim": 0.95}, 0.6) < floors.rank({"psnr": 35.9, "ssim": 0.95}, 0.1)

    budget = Target(max_cost=0.5, maximise=SSIM, cost="flops")
    assert budget.main is SSIM
    assert budget.misses({}, 0.75) == {"cost": 0.5}
    assert budget.is_met({}, 0.5)
    assert budget.score({"ssim": 0.8}, 0.1) == -0.8
    assert budget.rank({"ssim": 0.7}, 0.4) < budget.rank({"ssim": 0.99}, 0.51)

    distance = Metric("lpips", lambda pictures, references: [], scale=0.03, is_higher_better=False, version="v")
    near = Target((Floor(distance, 0.05),))
    assert near.is_met({"lpips": 0.05}, 1.0)
    assert near.misses({"lpips": 0.08}, 1.0) == pytest.approx({"lpips": 1.0})
    assert near.to_dict()["versions"] == {"lpips": "v"}
    lowest = Target(max_cost=0.5, cost="flops", maximise=distance)
    assert lowest.rank({"lpips": 0.1}, 0.4) < lowest.rank({"lpips": 0.2}, 0.3)


def test_a_quantile_is_the_bad_end() -> None:
    values = {"psnr": [float(v) for v in range(20, 31)], "ssim": [0.5] * 11, "lpips": [v / 10 for v in range(11)]}
    assert Target((Floor(PSNR, 25.0),)).quality(values)["psnr"] == 25.0
    distance = Metric("lpips", lambda pictures, references: [], scale=0.03, is_higher_better=False)
    strict = Target((Floor(PSNR, 25.0), Floor(distance, 0.5)), quantile=0.1)
    assert strict.quality(values) == pytest.approx({"psnr": 21.0, "lpips": 0.9, "ssim": 0.5})
    middle, low, high = quantile_interval(values["psnr"], 0.1)
    assert 20.0 <= low <= middle <= high < 25.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Target(), "neither a floor nor a budget"),
        (lambda: Target((Floor(PSNR, 30.0),), max_cost=0.5), "both floors and a budget"),
        (lambda: Target(max_cost=1.0), r"--max-cost: got 1.0; allowed: a share .* in \(0, 1\)"),
        (lambda: Target(max_cost=0.5, cost="money"), "--cost: got 'money'; allowed: time, flops, token_steps"),
        (lambda: Target(max_cost=0.5, quantile=1.0), "--quantile: got 1.0"),
        (lambda: Floor(PSNR, 61.0), "psnr: got the target 61; allowed: 0 to 60"),
        (lambda: Floor(SSIM, 1.2), "ssim: got the target 1.2"),
        (
            lambda: Space(RUN, RASConfig(), frozenset({"sigma"})),
            "--without: got sigma; allowed: step_ratios, importance",
        ),
        (lambda: Space(RUN, RASConfig.reference()), "reference rules, which leave nothing to tune"),
    ],
)
def test_targets_and_spaces_that_make_no_sense_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_equal_pictures_meet_every_floor() -> None:
    pictures = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert PSNR.measure(pictures, pictures) == [MAX_PSNR] * 2
    assert SSIM.measure(pictures, pictures) == pytest.approx([1.0] * 2)
    video = pictures[:, None].repeat(1, 3, 1, 1, 1)
    assert PSNR.measure(video, video) == [MAX_PSNR] * 2


def test_lpips_of_equal_pictures_of_videos_and_of_small_ones(tmp_path: Path) -> None:
    metric = lpips(Perceptual.load_lpips(lpips_file(tmp_path / "alex.pth")))
    noise = torch.Generator().manual_seed(0)
    pictures, others = (torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=noise) for _ in range(2))
    assert metric.measure(pictures, pictures) == [0.0] * 2
    first, second = metric.measure(pictures, others)
    assert min(first, second) > 0
    assert metric.measure(pictures[None], others[None]) == pytest.approx([(first + second) / 2])
    with pytest.raises(ValueError, match="got pictures of 16 x 32; allowed: at least 32 pixels"):
        metric.measure(pictures[..., :16], others[..., :16])
    assert metric.version != lpips(Perceptual.load_lpips(lpips_file(tmp_path / "vgg.pth", "vgg"))).version


def test_fronts_and_candidates_by_hand() -> None:
    ratios = [RASConfig(sample_ratio=ratio) for ratio in (0.1, 0.2, 0.3, 0.4, 0.5)]
    values = [(29.0, 0.3), (31.0, 0.4), (30.5, 0.5), (35.0, 0.6), (28.0, 0.9)]
    trials = [trial(config, *value) for config, value in zip(ratios, values, strict=True)]
    assert [t.cost for t in front_of(trials, FLOOR_30)] == [0.3, 0.4, 0.6]
    assert [t.cost for t in candidates_of(trials, FLOOR_30)] == [0.4, 0.6], "the cheapest first, then better ones"
    best = best_of(trials, FLOOR_30)
    assert best is not None
    assert best.cost == 0.4
    budget = Target(max_cost=0.6, cost="flops")
    assert [t.cost for t in candidates_of(trials, budget)] == [0.6, 0.4, 0.3], "the best first, then cheaper ones"
    nothing = best_of([dataclasses.replace(t, state="pruned") for t in trials], budget)
    assert nothing is None


# ---------------------------------------------------------------------- the space


def test_every_option_is_searched_or_said_not_to_be() -> None:
    fields = {field.name for field in dataclasses.fields(RASConfig)}
    searched = {knob.option for knob in SPACE}
    assert searched | {*PLAN_OPTIONS} | {*UNSEARCHED} == fields
    assert not searched & {*PLAN_OPTIONS, *UNSEARCHED}


def test_every_suggestion_is_a_config() -> None:
    for num_steps, is_euler in ((1, True), (2, True), (9, False), (28, True)):
        space = Space(
            Run(num_steps, NUM_TOKENS, is_euler, has_text_reuse=is_euler), RASConfig(kv_cache_dtype="bfloat16")
        )
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        found = [space.config(space.suggest(study.ask())) for _ in range(60)]
        for config in found:
            assert len(build_plan(config, num_steps, NUM_TOKENS)) == len(config.step_ratios) == num_steps
            assert config.kv_cache_dtype == "bfloat16", "what is not searched is the base's"
            assert is_euler or (config.solver_order, config.text_reuse) == (1, False)
        assert any(config.text_reuse for config in found) == is_euler, "only where the model can"
        assert any(config.forecast_below < 1 for config in found)


def test_text_is_not_reused_where_only_some_layers_keep_it() -> None:
    space = Space(Run(9, NUM_TOKENS, is_euler=True, has_text_reuse=True), RASConfig(kv_cache_layers=0.5))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = [space.config(space.suggest(study.ask())) for _ in range(60)]
    assert {(config.kv_cache_layers, config.text_reuse) for config in found} == {(0.5, False)}


def test_known_configs_have_a_place_in_the_space() -> None:
    """The front-loaded plans one that is near, all others their own."""
    space = Space(Run(28, 256, True), RASConfig(token_multiple=4))
    known = known_good(space)
    assert {"base", *(f"preset {name}" for name in PRESETS)} < set(known)
    assert sum(name.endswith("second order") for name in known) == 2
    study = optuna.create_study()
    for name, config in known.items():
        assert config.token_multiple == 4
        study.enqueue_trial(space.parameters(config))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = space.config(space.suggest(study.ask()))
        plan, wanted = build_plan(found, 28, 256), build_plan(config, 28, 256)
        if name.startswith("preset"):
            assert plan.token_steps == pytest.approx(wanted.token_steps, abs=0.3)
            dense, others = ([step.index for step in each if step.kind == "dense"] for each in (plan, wanted))
            assert all(abs(a - b) <= 2 for a, b in zip(dense, others, strict=True)), "seven numbers come near any plan"
        else:
            assert plan == wanted
        for option in ("importance", "solver_order", "forecast_order", "forecast_damping", "forecast_below"):
            assert getattr(found, option) == getattr(config, option)


@pytest.mark.parametrize("num_steps", [1, 6, 12, 28, 50])
def test_known_configs_fit_runs_of_any_length(num_steps: int) -> None:
    for name, config in known_good(Space(Run(num_steps, 256, True), RASConfig())).items():
        if name.startswith("preset"):
            shares = ratios_of(build_plan(config, num_steps, 256))
            half = (num_steps + 1) // 2
            assert num_steps < 12 or sum(shares[:half]) >= sum(shares[half:]), "at least half in the first half"
            own = build_plan(config, 28, 256).token_steps / 28
            assert num_steps < 12 or sum(shares) / num_steps == pytest.approx(own, abs=0.06)


def test_options_left_out_keep_the_value_of_the_base(tmp_path: Path) -> None:
    base = RASConfig(importance="std", refresh_every=5, refresh_steps=(3,), solver_order=2)
    without = frozenset({"importance", "step_ratios", "solver_order", "forecast_order"})
    space = Space(RUN, base, without)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for config in [space.config(space.suggest(study.ask())) for _ in range(20)] + [*known_good(space).values()]:
        kept = (config.importance, config.refresh_every, config.refresh_steps, config.solver_order, config.step_ratios)
        assert kept == ("std", 5, (3,), 2, ())
        assert config.forecast_order == 0
    fixed = search(tmp_path, base=base, without=without)
    fixed.search_options(6)
    fixed.search_plans(4)
    assert len(fixed.trials) == 6, "a plan that is to stay is not changed either"


# ---------------------------------------------------------------------- plans


shares = st.one_of(st.just(0.0), st.just(1.0), st.floats(0.01, 0.95))


@settings(max_examples=150, deadline=None)
@given(rest=st.lists(shares, min_size=1, max_size=30), seed=st.integers(0, 999))
def test_moves_make_plans_of_plans(rest: list[float], seed: int) -> None:
    ratios = (1.0, *rest)
    changed = neighbour(ratios, Random(seed))
    assert changed == neighbour(ratios, Random(seed)), "a pure function"
    assert changed != ratios
    for move in MOVES:
        each = move(ratios, Random(seed))
        check_ratios(ratios if each is None else each)
    check_ratios(changed)
    assert len(changed) == len(ratios)
    plan = build_plan(config_of_ratios(changed, RASConfig(kv_forecast=0.5)), len(changed), 1000)
    ran = ratios_of(plan)
    check_ratios(ran)
    assert ran == pytest.approx(changed, abs=5.1e-4), "what was asked for, to whole tokens"
    assert ratios_of(build_plan(config_of_ratios(ran, RASConfig()), len(ran), 1000)) == ran
    assert described(changed).startswith("dense at 0")


def test_config_of_ratios_by_hand() -> None:
    base = RASConfig(importance="std", refresh_every=4, skip_steps=(5,), end_step=9, forecast_below=0.9)
    config = config_of_ratios((1, 1, 0.1, 0.2, 1, 0, 0.3), base)
    assert config == RASConfig(step_ratios=(1, 1, 0.1, 0.2, 1, 0, 0.3), importance="std", forecast_below=0.9)
    assert ratios_of(build_plan(config, 7, 100)) == (1, 1, 0.1, 0.2, 1, 0, 0.3)
    assert config_of_ratios((1, 0.5), config).step_ratios == (1, 0.5), "one plan takes the place of another"
    with pytest.raises(ValueError, match="for the first evaluation; allowed: 1"):
        config_of_ratios((0.5, 1.0), RASConfig())
    with pytest.raises(ValueError, match="one share of the tokens"):
        config_of_ratios((1.0, 1.5), RASConfig())


def test_plans_in_words_by_hand() -> None:
    assert described((1, 1, 0.1, 0, 1, 0.1)) == "dense at 0-1 and 4, 2 region steps of 0.1 from 2 on, 1 skipped"
    assert described((1, 0.1, 0.25)) == "dense at 0, 2 region steps of 0.1 to 0.25 from 1 on"
    assert described((1, 0.5, 1, 1, 0, 1)) == "dense at 0, 2-3 and 5, a region step of 0.5 at 1, 1 skipped"
    words = trial(RASConfig(step_ratios=(1, 0, 1), solver_order=2), 30.0, 0.5).label
    assert words == "dense at 0 and 2, 1 skipped, solver_order 2"


def test_shapes_by_hand() -> None:
    front = Shape(warmup_steps=3, gap=2, gap_growth=2.0, tail=0, region_from=0.5, sample_ratio=0.2)
    dense = {0, 1, 2, 4, 8}  # distances 2, 4, 8
    assert front.ratios(16) == tuple(1 if i in dense else 0.2 if i >= 8 else 0 for i in range(16))
    both = dataclasses.replace(front, tail=2, region_from=1.0)  # from the end: 14, then 4 before it
    assert [i for i, ratio in enumerate(both.ratios(16)) if ratio == 1] == [0, 1, 2, 4, 8, 10, 14]
    assert set(both.ratios(16)) == {0, 1}


def test_region_steps_between_dense_ones_by_hand() -> None:
    midway = Shape(warmup_steps=2, gap=6, sample_ratio=0.5, regions_between=1)
    dense, regions = {0, 1, 7, 13, 19}, {4, 10, 16, 21}  # the last stretch ends with the run
    assert midway.ratios(24) == tuple(1 if i in dense else 0.5 if i in regions else 0 for i in range(24))
    assert Shape.nearest(midway.ratios(24)) == midway
    thirds = dataclasses.replace(midway, regions_between=2, region_from=0.25)
    assert [i for i, ratio in enumerate(thirds.ratios(16)) if ratio == 0.5] == [5, 9, 11, 14, 15]
    close = dataclasses.replace(midway, gap=2, regions_between=3)
    assert 0 not in close.ratios(9)[2:], "no more of them than there are steps"


def test_a_region_step_moves_among_skipped_ones() -> None:
    ratios = (1.0, 0.0, 0.5, 0.0, 1.0)
    moved = {shift_region(ratios, Random(seed)) for seed in range(20)}
    assert moved == {(1.0, 0.5, 0.0, 0.0, 1.0), (1.0, 0.0, 0.0, 0.5, 1.0)}
    assert shift_region((1.0, 0.5, 1.0), Random(0)) is None
    assert shift_region((1.0, 0.0, 1.0), Random(0)) is None


def test_a_dense_step_becomes_two_region_steps_and_the_other_way_round() -> None:
    parted = {split((1.0, 1.0, 0.0, 0.0), Random(seed)) for seed in range(20)}
    assert parted == {(1.0, 0.5, 0.5, 0.0), (1.0, 0.5, 0.0, 0.5)}, "the first evaluation stays dense"
    assert split((1.0, 1.0, 1.0), Random(0)) is split((1.0, 0.0, 0.0), Random(0)) is None
    joined = {join((1.0, 0.5, 0.5, 0.0), Random(seed)) for seed in range(20)}
    assert joined == {(1.0, 1.0, 0.0, 0.0), (1.0, 0.0, 1.0, 0.0)}
    smaller = {join((1.0, 0.3, 0.3, 0.3), Random(seed)) for seed in range(20)}
    assert smaller == {(1.0, 1.0, 0.0, 0.0), (1.0, 0.0, 1.0, 0.0), (1.0, 0.0, 0.0, 1.0)}
    assert join((1.0, 0.5, 0.0), Random(0)) == (1.0, 1.0, 0.0), "nothing left to pay with"
    assert join((1.0, 0.0, 1.0), Random(0)) is None


@settings(max_examples=100, deadline=None)
@given(
    num_steps=st.integers(1, 40),
    gap=st.integers(2, 12),
    growth=st.sampled_from(GROWTHS),
    tail=st.integers(0, MAX_TAIL),
    begins=st.integers(0, 8),
    data=st.data(),
)
def test_the_shape_nearest_to_a_shapes_plan_has_this_plan(
    num_steps: int, gap: int, growth: float, tail: int, begins: int, data: Any
) -> None:
    warmup = data.draw(st.integers(1, max(1, num_steps // 2)))
    ratios = Shape(warmup, gap, growth, tail, begins * FROM_STEP, 0.3).ratios(num_steps)
    check_ratios(ratios)
    found = Shape.nearest(ratios).ratios(num_steps)
    dense = [sum(ratio == 1 for ratio in each) for each in (ratios, found)]
    assert abs(dense[0] - dense[1]) <= 1
    if tail == 0:
        assert [ratio == 1 for ratio in found] == [ratio == 1 for ratio in ratios]


# ---------------------------------------------------------------------- the search


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Search:
    done = search(tmp_path_factory.mktemp("whole"))
    done.search_options(26)
    done.search_plans(12)
    return done


def test_never_worse_than_the_known_configs_and_better_by_searching(found: Search) -> None:
    """At 30 dB the formula needs T of a quarter; the known configs come first, whole."""
    known = [t for t in found.trials if t.stage == "known"]
    assert {t.name for t in known} == set(known_for(found.space, found.bench))
    assert all(t.state == "measured" for t in known)
    best = best_of(found.trials, FLOOR_30)
    assert best is not None
    assert best.is_met(FLOOR_30)
    assert best.rank(FLOOR_30) <= min(t.rank(FLOOR_30) for t in known)
    assert best.cost is not None
    assert 0.25 <= best.cost < 0.31
    by_options = best_of([t for t in found.trials if t.stage != "plan"], FLOOR_30)
    assert by_options is not None
    assert best.rank(FLOOR_30) <= by_options.rank(FLOOR_30)
    assert len([t for t in found.trials if t.stage == "plan"]) == 12


def test_hopeless_configs_are_given_up_early_and_only_those(found: Search) -> None:
    pruned = [t for t in found.trials if t.state == "pruned"]
    assert pruned
    for each in pruned:
        assert each.measured is not None
        assert each.quality is not None
        assert each.measured.num_pictures == 2
        assert each.reason == "hopeless after 2 pictures"
        level = each.measured.per_picture["psnr"][0] - HARDNESS[0]
        assert each.quality["psnr"] == pytest.approx(level), "easy and hard pictures are told apart"
        assert level < 27.0
    counts = [count for _, count in found.bench.painted]  # type: ignore[attr-defined]
    assert sorted(set(counts)) == [2, 8]
    assert len(counts) <= len(found.trials), "nothing is painted twice"


@pytest.mark.parametrize("calls", [1, 9, 17, 29])
def test_a_search_that_was_interrupted_goes_on_as_if_it_had_not_been(found: Search, tmp_path: Path, calls: int) -> None:
    class Interrupted(FormulaBench):
        def measure(self, *args: Any, **kwargs: Any) -> Any:
            if len(self.painted) == calls:
                raise KeyboardInterrupt
            return super().measure(*args, **kwargs)

    def go_on(on: Search) -> None:
        on.search_options(26)
        on.search_plans(12)

    first = search(tmp_path, Interrupted.new())
    with pytest.raises(KeyboardInterrupt):
        go_on(first)
    with (tmp_path / "trials.log").open("a") as stream:
        stream.write('{"op_code": 5, "half a li')
    again = search(tmp_path)
    assert again.trials == first.trials
    go_on(again)
    assert [t.to_dict() for t in again.trials] == [t.to_dict() for t in found.trials]
    assert search(tmp_path).trials == again.trials, "all of it is on disk"


def test_what_costs_too_much_or_saves_nothing_is_not_run(tmp_path: Path) -> None:
    target = Target(max_cost=0.3, cost="token_steps")
    budget = search(tmp_path, target=target)
    budget.search_options(24)
    unrun = [t for t in budget.trials if t.state == "not run"]
    assert unrun
    ran = {json.dumps(config.to_dict()) for config, _ in budget.bench.painted if config}  # type: ignore[attr-defined]
    for each in unrun:
        assert each.stage == "options"
        assert json.dumps(each.config.to_dict()) not in ran
    best = best_of(budget.trials, target)
    assert best is not None
    assert best.is_met(target)
    assert budget.bench.why_not(RASConfig(sample_ratio=1.0)) == "saves nothing: every step is dense"
    assert "12 transformer evaluations" in budget.bench.why_not(RASConfig(refresh_steps=(40,)))


def test_memory_options_of_the_base_go_with_everything(tmp_path: Path) -> None:
    half = search(tmp_path, base=RASConfig(kv_cache_dtype="bfloat16"))
    half.search_options(16)
    assert all(t.config.kv_cache_dtype == "bfloat16" for t in half.trials)
    assert any(t.config.kv_forecast for t in half.trials)


def test_options_that_do_not_go_together_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Space.config

    def without_first_order(space: Space, chosen: Any) -> RASConfig:
        if chosen.get("solver_order") == 1:
            raise ValueError("solver_order: not here.")
        return make(space, chosen)

    monkeypatch.setattr(Space, "config", without_first_order)
    fussy = search(tmp_path)
    fussy.search_options(20)
    refused = [t for t in fussy.trials if t.state == "not run"]
    assert any("solver_order: not here." in t.reason for t in refused)
    assert len(fussy.trials) == 20


# ---------------------------------------------------------------------- validation


def candidates() -> list[Trial]:
    """Four configs at T of 0.25 to 0.55, all thought to be good enough."""
    configs = [config_of_ratios((1.0, *[share] * 11), RASConfig()) for share in (0.19, 0.28, 0.4, 0.5)]
    return [trial(config, 31.0, 0.25) for config in configs]


@pytest.mark.parametrize(
    ("offset", "status", "place", "count"),
    [(0.0, "met", 0, 3), (-3.0, "fallback", 1, 3), (-12.0, "fallback", 3, 4), (-30.0, "missed", None, 4)],
)
def test_validation_takes_the_first_that_holds(
    tmp_path: Path, offset: float, status: str, place: int | None, count: int
) -> None:
    on = SceneSet(SCENES, torch.zeros(8, 3, 12, 12, dtype=torch.uint8))
    bench, tried = FormulaBench.new(offset), candidates()
    validation = Validation(tmp_path, bench, on, FLOOR_30)
    verdict = validation.choose(tried)
    assert (verdict.status, len(verdict.candidates)) == (status, count)
    assert verdict.chosen is (None if place is None else tried[place])
    for each, validated in verdict.candidates:
        share = build_plan(each.config, NUM_STEPS, NUM_TOKENS).token_steps / NUM_STEPS
        middle, low, high = validated.intervals["psnr"]
        assert middle == pytest.approx(60 * share**0.5 + offset)
        assert low < middle < high
        assert validated.is_met == (middle >= 30)
        assert validated.is_sure == (low >= 30)
        assert validated.cost == share
    before = len(bench.painted)
    assert validation.choose(tried).status == status
    assert len(bench.painted) == before, "what was validated is not painted again"


# ---------------------------------------------------------------------- real pictures


class Worded(StableDiffusion3Pipeline):  # type: ignore[misc]
    """A pipeline whose prompts are numbers drawn from their letters."""

    def encode_prompt(self, prompt: list[str], **_: Any) -> Any:
        def normal(size: tuple[int, ...]) -> torch.Tensor:
            seeds = [sum(map(ord, words)) for words in prompt]
            return torch.stack([torch.randn(size, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

        words, pooled = normal((TEXT_LENGTH, TEXT_WIDTH)), normal((24,))
        return words, torch.zeros_like(words), pooled, torch.zeros_like(pooled)


@pytest.fixture
def pipe() -> Any:
    pipe = tiny_pipeline(pipeline=Worded)
    pipe.register_modules(vae=tiny_vae(4))
    pipe.vae_scale_factor, pipe.image_processor = 2, VaeImageProcessor(vae_scale_factor=2)
    return pipe


def tuning(folder: Path, **changes: Any) -> Tuning:
    settings: dict[str, Any] = {
        "target": Target((Floor(PSNR, 20.0),), cost="flops"),
        "calibration": SCENES[:3],
        "validation": SCENES[3:6],
        "call": {"height": 32, "width": 32, "max_sequence_length": TEXT_LENGTH},
        "steps": 6,
        "batch": 2,
        "model": "tiny",
    }
    return Tuning(folder, **{**settings, **changes})


def test_times_of_offloaded_weights_are_kept_apart(pipe: Any, tmp_path: Path) -> None:
    bench = SimpleNamespace(pipe=pipe)
    timed = Target((Floor(PSNR, 20.0),), cost="time")
    for folder, target in (("timed", timed), ("counted", Target((Floor(PSNR, 20.0),), cost="flops"))):
        tuning(tmp_path / folder, target=target)._claim(bench)  # type: ignore[arg-type]
        assert "offload" not in json.loads((tmp_path / folder / "tuning.json").read_text())
    tuning(tmp_path / "counted", offload="model")._claim(bench)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="holds a tuning with another offload"):
        tuning(tmp_path / "timed", target=timed, offload="model")._claim(bench)  # type: ignore[arg-type]


class Bars:
    """What every bar of a tuning was to hold, and what it held."""

    def __init__(self) -> None:
        self.found: dict[str, list[int]] = {}

    @contextmanager
    def __call__(self, title: str, total: int) -> Iterator[Callable[[str], None]]:
        counts = self.found[title] = [total, 0]

        def advance(text: str) -> None:
            counts[1] += 1

        yield advance


def test_bars_hold_what_is_to_be_done(tmp_path: Path) -> None:
    bars, without = Bars(), frozenset({"step_ratios"})
    tuning(tmp_path, without=without)._search(search(tmp_path, without=without), 6, 4, bars)
    assert bars.found["searching"] == [6, 6], "a plan that is to stay is not changed"


def test_a_tuning_that_goes_on_with_other_versions_says_so(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, bench, other = tuning(tmp_path), SimpleNamespace(pipe=pipe), {"ras_dit": "9", "torch": "8"}
    claim = tmp_path / "tuning.json"

    def begin() -> None:
        job._claim(bench)  # type: ignore[arg-type]

    with warnings.catch_warnings():
        warnings.simplefilter("error", RASWarning)
        begin()
        begin()
    monkeypatch.setattr("ras_dit.tune.tuning.versions", lambda: other)
    for _ in range(2):
        with pytest.warns(RASWarning, match=r"worked on with ras-dit .*, torch .* goes on with ras-dit 9, torch 8"):
            begin()
        assert claim_of(tmp_path)["versions"] == [versions(), other]
    older = {name: value for name, value in claim_of(tmp_path).items() if name != "versions"}
    claim.write_text(json.dumps(older))
    with pytest.warns(RASWarning, match="worked on with versions that were not kept, and goes on with ras-dit 9"):
        begin()
    assert claim_of(tmp_path) == {**older, "versions": [None, other]}


@pytest.mark.parametrize("name", ["tuning", "Tuning", "../x", "a/b", "", ".hidden", "a b", "tuned.report"])
def test_a_preset_takes_the_name_of_no_other_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"--name: got .*; allowed: "):
        write_report(tuning(tmp_path), Outcome(Verdict("missed", None, ()), (), ()), name, has_plot=False)
    assert not list(tmp_path.iterdir())


def test_a_whole_tuning(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = tuning(tmp_path)
    interrupted: list[int] = []
    with monkeypatch.context() as patch:
        measure = Bench.measure

        def stops(self: Bench, *args: Any, **kwargs: Any) -> Measured:
            interrupted.append(1)
            if len(interrupted) == 5:
                raise KeyboardInterrupt
            return measure(self, *args, **kwargs)

        patch.setattr(Bench, "measure", stops)
        with pytest.raises(KeyboardInterrupt):
            job.run(pipe, 30, 3)
    references = {path: path.stat().st_mtime_ns for path in (tmp_path / "references").rglob("*.safetensors")}
    assert len(references) == 4
    bars = Bars()
    outcome = job.run(pipe, 30, 3, bars)
    assert all(path.stat().st_mtime_ns == before for path, before in references.items()), "painted once"
    assert len(outcome.trials) == 33
    assert bars.found["dense runs at this cost"] == [3, 3]
    labels = [found.label for found in outcome.baselines]
    assert [label.partition("second order ")[2] for label in labels] == ["", "(AB2)", "(UniPC)"]
    chosen_cost = outcome.verdict.validated.cost
    assert chosen_cost <= int(labels[0].split()[0]) / job.steps + 1e-6, "fewer steps, but no less compute"

    chosen = outcome.verdict.chosen
    assert chosen is not None
    result = write_report(job, outcome, "mine")
    assert result == json.loads((tmp_path / "mine.report.json").read_text())
    assert result["status"] == outcome.verdict.status
    assert result["versions"]["torch"] == torch.__version__
    assert result["versions_of_trials"] == [versions()]
    assert (tmp_path / "mine.png").stat().st_size > 10_000
    assert not list(tmp_path.rglob(".*")), "no temporary file is left"
    with ras_dit.accelerate(pipe, str(tmp_path / "mine.json")) as handle:
        assert handle.config == chosen.config == RASConfig.from_dict(result["config"])
        pipe(["scene 0"], num_inference_steps=6, **job.call)
        assert handle.latest_plan is not None
        expected = 1 / handle.latest_plan.speedup_limit
    assert chosen.measured is not None
    assert chosen.measured.costs["token_steps"] == pytest.approx(build_plan(chosen.config, 6, 64).token_steps / 6)
    assert chosen.cost == pytest.approx(expected)

    for change, what in (
        ({"steps": 7}, "steps"),
        ({"target": Target(max_cost=0.5, cost="flops")}, "target"),
        ({"calibration": SCENES[:2]}, "calibration"),
        ({"model": "other"}, "model"),
    ):
        with pytest.raises(ValueError, match=f"holds a tuning with another {what}; give another folder"):
            tuning(tmp_path, **change).run(pipe, 11)
    scheduler = pipe.scheduler
    try:
        pipe.scheduler = type(scheduler)(shift=7.0)
        with pytest.raises(ValueError, match="holds a tuning with another scheduler; give another folder"):
            tuning(tmp_path).run(pipe, 11)
    finally:
        pipe.scheduler = scheduler
    weight = pipe.transformer.proj_out.weight
    with torch.no_grad():
        weight += 1e-3
        try:
            with pytest.raises(ValueError, match="holds a tuning with another transformer; give another folder"):
                tuning(tmp_path).run(pipe, 11)
        finally:
            weight -= 1e-3


def test_measured_costs_are_of_what_ran(pipe: Any, tmp_path: Path) -> None:
    bench = Bench(pipe, {"height": 32, "width": 32}, 6, 2, (PSNR,), is_timed=True)
    on = bench.references(SCENES[:4], Method("dense", "dense", 6), tmp_path)
    assert on.references.shape == (4, 3, 32, 32)
    config = RASConfig(sample_ratio=0.25, warmup_steps=2)
    found = bench.measure(Method("a", "ras", 6, config=config), on)
    assert found.costs["token_steps"] == pytest.approx((2 + 4 * 0.25) / 6)
    assert found.costs["token_steps"] < found.costs["flops"] < 1, "text tokens are computed in every step"
    assert found.costs["time"] > 0
    assert found.num_pictures == 4
    assert found.notes == []
    whole = bench.measure(Method("b", "dense", 6), on)
    assert whole.per_picture["psnr"] == [MAX_PSNR] * 4, "the dense run is its own reference"
    assert whole.costs["flops"] == 1.0
    assert bench.measure(Method("c", "dense", 3), on).costs["flops"] == 0.5


def test_times_of_two_machines_are_not_ranked_together(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ras_dit.machine.processor", lambda: "one")
    for cost in ("time", "flops"):
        job = tuning(tmp_path / cost, target=Target(max_cost=0.5, cost=cost))
        bench = Bench(pipe, job.call, job.steps, job.batch, job.target.metrics, is_timed=cost == "time")
        job._claim(bench)
        job._claim(bench)
        with monkeypatch.context() as patched:
            patched.setattr("ras_dit.machine.processor", lambda: "another")
            if cost == "time":
                with pytest.raises(ValueError, match="holds a tuning with another machine; give another folder"):
                    job._claim(bench)
            else:
                job._claim(bench)


def test_the_first_dense_call_of_a_process_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    painted: list[int] = []
    monkeypatch.setattr(Bench, "_paint", lambda self, scenes, steps: painted.append(steps))
    bench = Bench(None, {}, 6, 1, (PSNR,), is_timed=True)
    bench._time_dense([])
    assert painted == [6, 6]
    bench._time_dense([])
    assert painted == [6, 6, 6]


def test_what_cannot_be_tuned_is_refused(pipe: Any, tmp_path: Path) -> None:
    from diffusers import FlowMatchHeunDiscreteScheduler, FlowMatchLCMScheduler

    euler = pipe.scheduler
    with pytest.raises(ValueError, match="--trials: got 3; allowed: at least 11, the known configs"):
        tuning(tmp_path).run(pipe, 3, 0)
    pipe.scheduler = FlowMatchLCMScheduler()
    with pytest.raises(ValueError, match="adds fresh noise at every step, so that RAS runs dense"):
        tuning(tmp_path).run(pipe, 20)
    pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    with pytest.raises(ValueError, match="got 'converged' with FlowMatchHeunDiscreteScheduler"):
        tuning(tmp_path, reference="converged").run(pipe, 20)
    pipe.scheduler = euler
    assert not list(tmp_path.iterdir()), "nothing is written before all is in order"
    with pytest.raises(ValueError, match="got 'scene 1' for calibration and for validation"):
        tuning(tmp_path, validation=SCENES[1:3])
    with pytest.raises(ValueError, match="--validation: got 1"):
        tuning(tmp_path, validation=SCENES[3:4])
    with pytest.raises(ValueError, match="--reference: got 'best'; allowed: dense, converged"):
        tuning(tmp_path, reference="best")
    with pytest.raises(ValueError, match=r"call: got .* allowed: numbers, words and lists"):
        tuning(tmp_path, call={"image": torch.zeros(1)})
    with pytest.raises(ValueError, match="--converged-steps: got 0"):
        tuning(tmp_path, converged_steps=0)


def test_a_model_that_must_compute_its_text_is_not_asked_to_reuse_it(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token_plan = dataclasses.replace(TOKEN_PLANS["SD3Transformer2DModel"], text_rows=None)
    monkeypatch.setitem(TOKEN_PLANS, "SD3Transformer2DModel", token_plan)
    with pytest.raises(ValueError, match="text_reuse: got SD3Transformer2DModel; allowed: AuraF"):
        tuning(tmp_path, base=RASConfig(text_reuse=True)).run(pipe, 12)
    assert not list(tmp_path.iterdir())


def test_two_tunings_in_a_folder_at_once_are_refused(pipe: Any, tmp_path: Path) -> None:
    with (
        alone_in(tmp_path, "tuning"),
        pytest.raises(ValueError, match="another tuning is under way there; wait for it, or give another folder"),
    ):
        tuning(tmp_path).run(pipe, 11)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    killed = "import os, sys; from pathlib import Path; from ras_dit.files import alone_in\n"
    killed += "with alone_in(Path(sys.argv[1]), 'tuning'): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", killed, str(tmp_path)], check=False).returncode == 9
    with alone_in(tmp_path, "tuning"):
        pass  # the lock of a process that was killed is none


def test_a_metric_of_ones_own_and_a_target_out_of_reach(pipe: Any, tmp_path: Path) -> None:
    """Any function of pictures can be a floor; one that nothing meets leaves no preset behind."""

    def difference(pictures: torch.Tensor, references: torch.Tensor) -> list[float]:
        return [float(each) for each in (pictures.float() - references.float()).abs().mean(dim=(1, 2, 3))]

    metric = Metric("difference", difference, scale=1.0, is_higher_better=False)
    job = tuning(tmp_path, target=Target((Floor(metric, 0.0),), cost="token_steps", quantile=0.25))
    (tmp_path / "tuned.json").write_text("{}")
    bars = Bars()
    outcome = job.run(pipe, 11, 0, bars)
    assert bars.found["validating"] == bars.found["dense runs at this cost"] == [0, 0]
    result = write_report(job, outcome, has_plot=False)
    assert result["status"] == "missed"
    assert result["config"] is None
    assert not (tmp_path / "tuned.json").exists()
    assert any("TARGET MISSED on the calibration pictures" in line for line in result["summary"])
    assert result["closest"]["quality"]["difference"] > 0
