"""`find_plan` finds where the compute of a run should go, from a few dense runs of the pipeline itself.

The noise of a dense run is recorded once; what a plan would make of it (which tokens it computes, what the others are
forecast) is then worked out without the model, in milliseconds, so that thousands of plans can be compared. Two things
are measured beside: how much an error that is made in an evaluation has grown by the end of the run, and what a region
step costs.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ras_dit.config import RASConfig
from ras_dit.dense_runs import PROBES, Choices, RecordedRun, SameRuns
from ras_dit.engine import resolve_config
from ras_dit.plan import Plan, build_plan
from ras_dit.presets import PRESETS

DAMPINGS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
LEVELS_BELOW = (0.9, 0.93, 0.96, 1.0)
MAX_BETWEEN = 2
"""Region steps between two dense ones: the simulation knows too little of old keys and values to trust it with more."""


def find_plan(
    pipe: Any,
    cost: float,
    config: RASConfig | str | Path | None = "regions",
    *,
    num_moves: int = 1500,
    seed: int = 0,
    on_progress: Callable[[], None] = lambda: None,
    **call: Any,
) -> RASConfig:
    """Find a plan that stays near to this pipeline's own dense runs, for what it may cost.

    One dense run is recorded, six more leave out one evaluation each, and then plans are compared without the model.
    The best ones of three searches (one of them near to the config's own plan) are run, and beside them that plan and
    those of two presets, as far as they cost no more: the nearest is taken. It belongs to this pipeline and number of
    steps; several pictures should be in the call, and other ones than those that are to be judged by. `calibrate` may
    fit the plan's forecast afterwards; `ras-dit tune` searches by painting, which takes far longer and knows more.

    Args:
        pipe: a pipeline with FlowMatchEulerDiscreteScheduler, RAS not enabled on it.
        cost: FLOPs of the transformer as a share of a dense run's, in (0, 1).
        config: everything but the plan and the damping and beginning of its forecasts: a `RASConfig`, a preset or a
            file. One without region steps in it (``balanced``) gets a plan without, which keeps no keys and values.
        num_moves: changes that every search from a plan made up tries; that from the config's own a fifth of them.
        seed: of the searches, which find the same plans again.
        on_progress: called after every run and search, `NUM_TICKS` times in all.
        **call: arguments of the pipeline's call, as it will be called: prompts, size, ``num_inference_steps``. Without
            ``generator`` and ``latents`` the noise is that of seed 0.

    Returns:
        The config with the plan that was found, or as it was given if nothing nearer was.

    Raises:
        ValueError: RAS already enabled, a cost outside (0, 1) or too low, another scheduler, the authors' rules,
            second-order steps, a call of under four evaluations or of several runs, or latents that hold more than the
            tokens of a picture or video.

    Source: our own; docs/quality.md, "A plan from dense runs", says what it is worth.
    """
    config = resolve_config(config)
    check_cost(cost)
    if config.rules == "reference" or config.solver_order == 2:
        raise ValueError("find_plan: got the authors' rules or solver_order=2; allowed: first-order steps, our rules.")
    runs = SameRuns(pipe, config, call)
    first_plan(runs.num_steps, cost)  # refuses too low a cost before more runs are made
    on_progress()
    return best_plan(runs, runs.recorded(on_progress), config, cost, num_moves, seed, on_progress)


def best_plan(
    runs: SameRuns,
    recorded: RecordedRun,
    config: RASConfig,
    cost: float,
    num_moves: int = 1500,
    seed: int = 0,
    on_progress: Callable[[], None] = lambda: None,
) -> RASConfig:
    """`find_plan` in runs that were made and recorded: the best of several searches and the config itself."""
    own = build_plan(config, runs.num_steps, runs.dense.grid.num_tokens)
    dense_alone = replace(recorded, costs={share: recorded.costs[share] for share in (1.0, 0.0)})
    has_regions = any(0 < ratio < 1 for ratio in config.step_ratios) or not config.step_ratios
    found: list[Choices] = []
    for judged, start in ((recorded if has_regions else dense_alone, own), (recorded, None), (dense_alone, None)):
        if has_regions or judged is dense_alone:
            found.append(search(judged, config, cost, num_moves if start is None else num_moves // 5, seed, start))
        on_progress()
    candidates = [choices.config(config) for choices in dict.fromkeys(found)]
    candidates += _presets(runs, config, cost, has_regions)
    if own.has_savings and 1 / runs.costed(own).speedup_limit <= cost + 1e-9:
        candidates.insert(0, config)
    candidates = list(dict.fromkeys(candidates))
    near = []
    for candidate in candidates:
        near.append(runs.nearness(candidate))
        on_progress()
    for _ in range(NUM_CANDIDATES - len(candidates)):  # searches that found the same, or a plan that costs too much
        on_progress()
    best = candidates[near.index(max(near))]
    keeps_any = not best.step_ratios or any(0 < ratio < 1 for ratio in best.step_ratios)
    return best if keeps_any or not best.kv_forecast else best.replace(kv_forecast=0.0)  # nobody would heed it


def _presets(runs: SameRuns, config: RASConfig, cost: float, has_regions: bool) -> list[RASConfig]:
    """The plans of the two presets that use the cost best, in runs of this length."""
    found = []
    for preset in PRESETS.values():
        if has_regions or set(preset.step_ratios) <= {0, 1}:
            own = {name: getattr(preset, name) for name in ("step_ratios", "forecast_damping", "forecast_below")}
            candidate = config.replace(forecast_order=1, **own)
            plan = runs.costed(build_plan(candidate, runs.num_steps, runs.dense.grid.num_tokens))
            if 1 / plan.speedup_limit <= cost + 1e-9:
                shares = tuple(step.num_active / plan.num_tokens for step in plan)
                found.append((1 / plan.speedup_limit, candidate.replace(step_ratios=shares)))
    return [candidate for _, candidate in sorted(found, key=lambda each: -each[0])[:NUM_PRESETS]]


NUM_PRESETS = 2
NUM_CANDIDATES = 4 + NUM_PRESETS
NUM_TICKS = 1 + len(PROBES) + 3 + NUM_CANDIDATES


def check_cost(cost: float) -> None:
    """Refuse what no plan can cost."""
    if not 0 < cost < 1:
        raise ValueError(f"cost: got {cost}; allowed: a share of the dense run's FLOPs, between 0 and 1.")


def search(
    run: RecordedRun,
    config: RASConfig,
    cost: float,
    num_moves: int = 1500,
    seed: int = 0,
    start: Plan | None = None,
) -> Choices:
    """Simulated annealing over plans that cost no more than they may; near to a given one, only what is better.

    Args:
        run: what plans are judged on.
        config: see `RecordedRun.nearness`.
        cost: FLOPs as a share of the dense run's.
        num_moves: changes that are tried.
        seed: of the changes.
        start: a plan to stay near to, if it is as cheap and sound; else, and without one, the search begins with
            regularly spaced dense steps.

    Raises:
        ValueError: no plan is as cheap.
    """
    rng = random.Random(seed)
    first, is_near = Choices(first_plan(run.num_steps, cost)), False
    if start is not None:
        shares = tuple(_nearest(run.costs, step.num_active / start.num_tokens) for step in start)
        if run.cost(shares) <= cost and is_sound(shares):
            first, is_near = Choices(shares, config.forecast_damping, config.forecast_below), True
    now = best = first
    nearness = best_nearness = run.nearness(now, config)
    for move in range(num_moves):
        changed = _changed(now, [share for share in run.costs if 0 < share < 1], rng)
        if run.cost(changed.shares) <= cost and is_sound(changed.shares):
            found = run.nearness(changed, config)
            temperature = 0.02 + (0.0 if is_near else (1 - move / num_moves) ** 2)  # in dB
            if found > nearness or rng.random() < math.exp((found - nearness) / temperature):
                now, nearness = changed, found
            if found > best_nearness:
                best, best_nearness = changed, found
    return best


def num_first(num_steps: int) -> int:
    """Evaluations at the beginning that are dense in every plan: what they do cannot be told from small errors."""
    return min(num_steps, max(3, math.ceil(3 * num_steps / 28)))


def max_gap(num_steps: int) -> int:
    """From one dense evaluation to the next."""
    return math.ceil(num_steps / 4) + 1


def is_sound(shares: Sequence[float]) -> bool:
    """Whether the simulation can be trusted with a plan: dense at first, never long without, few regions in a row."""
    num_steps = len(shares)
    dense = [index for index, share in enumerate(shares) if share == 1]
    if dense[: num_first(num_steps)] != list(range(num_first(num_steps))):
        return False
    for begin, end in zip(dense, [*dense[1:], num_steps], strict=True):
        if end - begin > max_gap(num_steps) or sum(share > 0 for share in shares[begin + 1 : end]) > MAX_BETWEEN:
            return False
    return True


def first_plan(num_steps: int, cost: float) -> tuple[float, ...]:
    """As many dense evaluations as the cost allows, regularly spaced after the first ones.

    Raises:
        ValueError: they are too few for a plan that is sound.
    """
    first, count = num_first(num_steps), math.floor(cost * num_steps + 1e-9)
    least = first
    while not is_sound(_spaced(num_steps, first, least)):
        least += 1
    if count < least:
        raise ValueError(
            f"cost: got {cost:g}, {count} dense evaluations of {num_steps}; allowed: at least {least / num_steps:.2f} "
            f"({least} evaluations). Below it too little of the run is left to go by."
        )
    return _spaced(num_steps, first, count)


def _spaced(num_steps: int, first: int, count: int) -> tuple[float, ...]:
    """The first evaluations and others at regular distances, ``count`` in all."""
    distance = (num_steps - first) / (count - first + 1)
    dense = {*range(first), *(first - 1 + round(distance * number) for number in range(1, count - first + 1))}
    return tuple(float(index in dense) for index in range(num_steps))


def _nearest(costs: Mapping[float, float], share: float) -> float:
    """The share that the search knows which is nearest to another; 1 and 0 stand for themselves alone."""
    between = [known for known in costs if 0 < known < 1]
    return share if share in (0, 1) or not between else min(between, key=lambda known: abs(known - share))


def _changed(choices: Choices, ratios: Sequence[float], rng: random.Random) -> Choices:
    """One to three small changes."""
    shares, damping, below = list(choices.shares), choices.forecast_damping, choices.forecast_below
    for _ in range(rng.choice((1, 1, 2, 3))):
        kind, index = rng.random(), rng.randrange(1, len(shares))
        if kind < 0.5:  # move an evaluation that computes something
            index = rng.choice([place for place in range(1, len(shares)) if shares[place]])
            other = index + rng.choice((-2, -1, 1, 2))
            if 0 < other < len(shares):
                shares[index], shares[other] = shares[other], shares[index]
        elif kind < 0.75:  # another kind of evaluation
            shares[index] = rng.choice((0.0, 0.0, 1.0, rng.choice(ratios) if ratios else 1.0))
        elif kind < 0.9:  # larger or smaller regions
            regions = [place for place, share in enumerate(shares) if 0 < share < 1]
            if regions:
                shares[rng.choice(regions)] = rng.choice(ratios)
        elif kind < 0.95:
            damping = rng.choice(DAMPINGS)
        else:
            below = rng.choice(LEVELS_BELOW)
    return Choices(tuple(shares), damping, below)
