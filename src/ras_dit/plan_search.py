"""`find_plan` finds where the compute of a run should go, from a few dense runs of the pipeline itself.

The noise of a dense run is recorded once; what a plan would make of it (which tokens it computes, what the others are
forecast) is then worked out without the model, in milliseconds, so that thousands of plans can be compared. Two things
are measured beside: how much an error that is made in an evaluation has grown by the end of the run, and what a region
step costs.
"""

from __future__ import annotations

import math
import random
import warnings
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ras_dit import selection
from ras_dit.calibration import SameCall
from ras_dit.config import RASConfig
from ras_dit.config_checks import PLAN_OPTIONS
from ras_dit.engine import accelerate, resolve_config
from ras_dit.fitted import FittedForecast
from ras_dit.forecast import TokenHistory
from ras_dit.geometry import TokenGrid
from ras_dit.importance import predicted_error
from ras_dit.plan import Plan, build_plan
from ras_dit.schedule import is_euler
from ras_dit.session import SmallGainWarning

RATIOS = (0.25, 0.375, 0.5, 0.625, 0.75)
"""Shares of the tokens that a region step may compute."""
DAMPINGS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
LEVELS_BELOW = (0.9, 0.93, 0.96, 1.0)
MAX_BETWEEN = 2
"""Region steps between two dense ones: the simulation knows too little of old keys and values to trust it with more."""
STALENESS = 4.0
"""How much worse a computed token fares for what the tokens that it attends to have moved on since their keys and
values were computed: a factor on the squared error, chosen for how well the simulation then agrees with plans that the
embedded model really ran (`python -m benchmarks.plan_search` says how well)."""
PROBES = (1, 2, 4, 8, 15, 22)
"""Evaluations of 28 that are left out, one at a time, to see how errors grow."""
MAX_VALUES = 2**21
"""Numbers of an evaluation's noise that are kept at most; of larger ones every second, third ... token."""


@dataclass(frozen=True)
class Choices:
    """What is searched: a share per evaluation (1 dense, 0 skipped), and how forecasts are made."""

    shares: tuple[float, ...]
    forecast_damping: float = 0.7
    forecast_below: float = 0.93

    def config(self, base: RASConfig) -> RASConfig:
        """A config of these choices, with everything else as in ``base``."""
        defaults = RASConfig().to_dict()
        return base.replace(
            **{name: defaults[name] for name in PLAN_OPTIONS},
            step_ratios=self.shares,
            forecast_order=1,
            forecast_damping=self.forecast_damping,
            forecast_below=self.forecast_below,
        )


@dataclass(frozen=True)
class RecordedRun:
    """A dense run, and what is needed to tell what a plan would have made of it.

    Attributes:
        sigmas: noise level of every evaluation, and the last one reached.
        noise: guided noise [S, B, N, D] float32, of some of the tokens if there are very many.
        growth: factor by which an error made in an evaluation has grown at the end of the run [S].
        costs: what an evaluation costs by its share of tokens, a dense one being 1 and a skipped one 0.
    """

    sigmas: tuple[float, ...]
    noise: torch.Tensor
    growth: tuple[float, ...]
    costs: Mapping[float, float]

    @property
    def num_steps(self) -> int:
        return len(self.noise)

    def cost(self, shares: Sequence[float]) -> float:
        """FLOPs of a plan as a share of those of the dense run."""
        return sum(self.costs[share] for share in shares) / len(shares)

    def nearness(self, choices: Choices, config: RASConfig) -> float:
        """How near to the dense run a plan would come, in dB of the latents: the mean over pictures of -10 log10 of the
        mean squared error at the end.

        Args:
            choices: the plan.
            config: its ``forecast_reach`` and ``kv_forecast`` count.
        """
        history, cached = TokenHistory(2), TokenHistory(2)
        num_tokens = self.noise.shape[2]
        error = torch.zeros_like(self.noise[0])
        stale = error.new_zeros(error.shape[0])
        for index, (share, noise) in enumerate(zip(choices.shares, self.noise, strict=True)):
            sigma, weight = self.sigmas[index], self.growth[index] * (self.sigmas[index + 1] - self.sigmas[index])
            if share == 1:
                history.record(noise, sigma)
                cached.record(noise, sigma)
                continue
            is_late = sigma < choices.forecast_below
            forecast = history.forecast(sigma, int(is_late), choices.forecast_damping, config.forecast_reach)
            missed = forecast - noise
            if share:
                active = selection.top_k(predicted_error(history, sigma), max(1, round(share * num_tokens)))
                is_active = selection.membership(active, num_tokens)
                missed = missed.masked_fill(is_active[..., None], 0)
                damping = config.kv_forecast if is_late else 0.0
                old = (cached.forecast(sigma, 1, damping) - noise).masked_fill(is_active[..., None], 0)
                stale = stale + share * weight**2 * old.square().mean(dim=(1, 2))
                history.record(noise, sigma, is_active)
                cached.record(noise, sigma, is_active)
            error += weight * missed
        squared = error.square().mean(dim=(1, 2)) + STALENESS * stale
        return float(-10 * (squared + 1e-12).log10().mean())


def find_plan(
    pipe: Any,
    cost: float,
    config: RASConfig | str | Path | None = "regions",
    *,
    num_moves: int = 2000,
    seed: int = 0,
    on_progress: Callable[[], None] = lambda: None,
    **call: Any,
) -> RASConfig:
    """Find the plan that stays nearest to this pipeline's own dense runs, for what it may cost.

    One dense run is recorded, six more leave out one evaluation each, and then plans are compared without the model.
    The plan belongs to this pipeline and number of steps; several pictures should be in the call, and other ones than
    those that are to be judged by. `calibrate` may fit the plan's forecast afterwards; `ras-dit tune` searches by
    painting, which takes far longer and knows more.

    Args:
        pipe: a pipeline with FlowMatchEulerDiscreteScheduler, RAS not enabled on it.
        cost: FLOPs of the transformer as a share of a dense run's, in (0, 1).
        config: everything but the plan and the damping and beginning of its forecasts: a `RASConfig`, a preset or a
            file. One without region steps in it (``balanced``) gets a plan without, which keeps no keys and values.
        num_moves: changes that are tried.
        seed: of the search, which finds the same plan again.
        on_progress: called after every run and after every tenth of the search, 17 times in all.
        **call: arguments of the pipeline's call, as it will be called: prompts, size, ``num_inference_steps``. Without
            ``generator`` and ``latents`` the noise is that of seed 0.

    Returns:
        The config with its plan.

    Raises:
        ValueError: too low a cost, another scheduler, second-order steps, or latents that hold more than the tokens of
            a picture or video.

    Source: our own; docs/quality.md, "A plan from dense runs", says what it is worth.
    """
    config = resolve_config(config)
    check_cost(cost)
    if config.rules == "reference" or config.solver_order == 2:
        raise ValueError("find_plan: got the authors' rules or solver_order=2; allowed: first-order steps, our rules.")
    run = record_run(pipe, config, on_progress, **call)
    return search(run, config, cost, num_moves, seed, on_progress).config(config)


def check_cost(cost: float) -> None:
    """Refuse what no plan can cost."""
    if not 0 < cost < 1:
        raise ValueError(f"cost: got {cost}; allowed: a share of the dense run's FLOPs, between 0 and 1.")


def record_run(
    pipe: Any, config: RASConfig, on_progress: Callable[[], None] = lambda: None, **call: Any
) -> RecordedRun:
    """Run a pipeline dense, and some more times to see how errors grow; arguments as for `find_plan`."""
    if not is_euler(pipe.scheduler):
        raise ValueError(
            f"find_plan: got {type(pipe.scheduler).__name__}; allowed: FlowMatchEulerDiscreteScheduler, whose steps "
            "show what noise leads to."
        )
    again = SameCall(pipe, call)
    dense, costed = _recorded(pipe, config.dense, again)
    on_progress()
    num_steps = len(dense.noise)
    if num_steps < 4:
        raise ValueError(f"find_plan: got a run of {num_steps} evaluations; allowed: at least 4.")
    growths: dict[int, float] = {}
    for probe in PROBES:
        left_out = min(max(1, round(probe / 28 * num_steps)), num_steps - 2)
        if left_out not in growths:
            shares = tuple(float(index != left_out) for index in range(num_steps))
            other, _ = _recorded(pipe, Choices(shares, 0.6, 1.0).config(config), again)
            growths[left_out] = _growth(dense, other, left_out)
        on_progress()
    shares = (1.0, *(RATIOS if any(0 < ratio < 1 for ratio in config.step_ratios) or not config.step_ratios else ()))
    plan = costed(build_plan(Choices(shares).config(config), len(shares), dense.grid.num_tokens))
    assert plan.cost is not None
    flops = [plan.cost.work_of[step.num_active].flops / plan.cost.dense_flops for step in plan]
    every = -(-dense.noise[0].numel() // MAX_VALUES)
    return RecordedRun(
        tuple(dense.sigmas),
        torch.stack([noise[:, ::every] for noise in dense.noise]),
        _interpolated(growths, num_steps),
        {**dict(zip(shares, flops, strict=True)), 0.0: 0.0},
    )


def search(
    run: RecordedRun,
    config: RASConfig,
    cost: float,
    num_moves: int = 2000,
    seed: int = 0,
    on_progress: Callable[[], None] = lambda: None,
) -> Choices:
    """Simulated annealing over plans that cost no more than they may.

    Args:
        run: what plans are judged on.
        config: see `RecordedRun.nearness`.
        cost: FLOPs as a share of the dense run's.
        num_moves: changes that are tried.
        seed: of the changes.
        on_progress: called ten times.

    Raises:
        ValueError: no plan is as cheap.
    """
    rng = random.Random(seed)
    now = best = Choices(_first_plan(run.num_steps, cost))
    nearness = best_nearness = run.nearness(now, config)
    for move in range(num_moves):
        changed = _changed(now, [share for share in run.costs if 0 < share < 1], rng)
        if run.cost(changed.shares) <= cost and is_sound(changed.shares):
            found = run.nearness(changed, config)
            temperature = (1 - move / num_moves) ** 2 + 0.02  # in dB
            if found > nearness or rng.random() < math.exp((found - nearness) / temperature):
                now, nearness = changed, found
            if found > best_nearness:
                best, best_nearness = changed, found
        if (move + 1) % max(1, num_moves // 10) == 0 and move < 10 * (num_moves // 10):
            on_progress()
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


def _first_plan(num_steps: int, cost: float) -> tuple[float, ...]:
    """As many dense evaluations as the cost allows, regularly spaced after the first ones."""
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


class NoiseRecorder(FittedForecast):
    """Leaves all noise as it is, and keeps it with the latents that Euler's steps make of it."""

    def __init__(self, grid: TokenGrid, sigmas: Sequence[float]) -> None:
        super().__init__((), grid, sigmas)
        self.noise: list[torch.Tensor] = []
        self.latents: list[torch.Tensor] = []

    def adjusted(
        self, index: int, model_output: torch.Tensor, sample: torch.Tensor, active: torch.Tensor | None
    ) -> torch.Tensor:
        """The noise itself."""
        noise, latents = self.grid.patchify(model_output).float(), self.grid.patchify(sample).float()
        if noise.numel() != model_output.numel() or latents.shape != noise.shape:
            raise ValueError(
                "find_plan: got latents that hold more than the tokens of a picture or video; allowed: those alone."
            )
        self.noise.append(noise)
        self.latents.append(latents + (self.sigmas[index + 1] - self.sigmas[index]) * noise)
        return model_output


def _recorded(pipe: Any, config: RASConfig, again: SameCall) -> tuple[NoiseRecorder, Callable[[Plan], Plan]]:
    """What a config does in a call, and what puts costs to plans of such calls."""
    recorders: list[NoiseRecorder] = []

    def record(grid: TokenGrid, sigmas: list[float]) -> NoiseRecorder:
        recorders.append(NoiseRecorder(grid, sigmas))
        return recorders[-1]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SmallGainWarning)
        with accelerate(pipe, config) as handle:
            handle._session.fitting = record
            again()
            costed = handle._session.costed
    if len(recorders) != 1:
        raise ValueError(f"find_plan: got a call of {len(recorders)} runs in a row; allowed: a single one.")
    assert costed is not None
    return recorders[0], costed


def _growth(dense: NoiseRecorder, other: NoiseRecorder, left_out: int) -> float:
    """By what an error made in an evaluation has grown at the end: the geometric mean over pictures."""

    def distance(index: int) -> torch.Tensor:
        return (other.latents[index] - dense.latents[index]).flatten(1).norm(dim=1).clamp_min(1e-12)

    return float((distance(-1) / distance(left_out)).log().mean().exp())


def _interpolated(growths: Mapping[int, float], num_steps: int) -> tuple[float, ...]:
    """Along lines between the evaluations that were measured, and as at the first and the last of them beyond."""
    known = sorted(growths)
    found = []
    for index in range(num_steps):
        after = min(bisect_right(known, index), len(known) - 1)
        begin, end = known[max(after - 1, 0)], known[after]
        share = 0.0 if begin == end else min(max((index - begin) / (end - begin), 0.0), 1.0)
        found.append((1 - share) * growths[begin] + share * growths[end])
    return tuple(found)
