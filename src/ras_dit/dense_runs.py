"""Dense runs of a pipeline, recorded to tell what plans would have made of them."""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ras_dit import selection
from ras_dit.calibration import SameCall
from ras_dit.config import RASConfig
from ras_dit.fitted import FittedForecast
from ras_dit.forecast import TokenHistory
from ras_dit.geometry import TokenGrid
from ras_dit.importance import predicted_error
from ras_dit.plan import Plan, build_plan
from ras_dit.remarks import AdviceWarning
from ras_dit.schedule import is_euler

RATIOS = (0.25, 0.375, 0.5, 0.625, 0.75)
"""Shares of the tokens that a region step may compute."""
STALENESS = 4.0
"""How much worse a computed token fares for what the tokens that it attends to have moved on since their keys and
values were computed: a factor on the squared error, chosen for how well the simulation then agrees with plans that the
embedded model really ran (`python -m benchmarks.plan_search` says how well)."""
PROBES = (1, 2, 4, 8, 15, 22)
"""Evaluations of 28 that are left out, one at a time, to see how errors grow."""
MAX_VALUES = 2**20
"""Numbers of an evaluation's noise that are kept at most; of larger ones every second, third ... token."""


@dataclass(frozen=True)
class Choices:
    """What is searched: a share per evaluation (1 dense, 0 skipped), and how forecasts are made."""

    shares: tuple[float, ...]
    forecast_damping: float = 0.7
    forecast_below: float = 0.93

    def config(self, base: RASConfig) -> RASConfig:
        """A config of these choices, with everything else as in ``base``."""
        return base.replace(
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
                old = cached.forecast(sigma, 1, damping, config.forecast_reach) - noise
                old = old.masked_fill(is_active[..., None], 0)
                stale = stale + share * weight**2 * old.square().mean(dim=(1, 2))
                history.record(noise, sigma, is_active)
                cached.record(noise, sigma, is_active)
            error += weight * missed
        squared = error.square().mean(dim=(1, 2)) + STALENESS * stale
        return float(-10 * (squared + 1e-12).log10().mean())


class SameRuns:
    """Runs of one call of a pipeline from the same noise, the first of them dense.

    Args:
        pipe: as for `find_plan`.
        config: likewise.
        call: likewise.

    Attributes:
        dense: the dense run.
        costed: puts costs to plans of such runs.

    Raises:
        ValueError: as of `find_plan`.
    """

    def __init__(self, pipe: Any, config: RASConfig, call: Mapping[str, Any]) -> None:
        if not is_euler(pipe.scheduler):
            raise ValueError(
                f"find_plan: got {type(pipe.scheduler).__name__}; allowed: FlowMatchEulerDiscreteScheduler, whose "
                "steps show what noise leads to."
            )
        self._config, self._call = config, SameCall(pipe, call)
        self.dense, self.costed = self._run(config.dense)
        if self.num_steps < 4:
            raise ValueError(f"find_plan: got a run of {self.num_steps} evaluations; allowed: at least 4.")

    @property
    def num_steps(self) -> int:
        return len(self.dense.noise)

    def recorded(self, on_progress: Callable[[], None] = lambda: None) -> RecordedRun:
        """The dense run as plans are judged on it, and how errors grow; ``on_progress`` is called for every probe."""
        growths: dict[int, float] = {}
        for left_out in probes(self.num_steps):
            if left_out not in growths:
                shares = tuple(float(index != left_out) for index in range(self.num_steps))
                other, _ = self._run(Choices(shares, 0.6, 1.0).config(self._config))
                growths[left_out] = _growth(self.dense, other, left_out)
            on_progress()
        shares = (1.0, *RATIOS)
        plan = self.costed(build_plan(Choices(shares).config(self._config), len(shares), self.dense.grid.num_tokens))
        assert plan.cost is not None
        flops = [plan.cost.work_of[step.num_active].flops / plan.cost.dense_flops for step in plan]
        return RecordedRun(
            tuple(self.dense.sigmas),
            torch.stack(self.dense.noise),
            _interpolated(growths, self.num_steps),
            {**dict(zip(shares, flops, strict=True)), 0.0: 0.0},
        )

    def nearness(self, config: RASConfig) -> float:
        """How near a config really comes, as `RecordedRun.nearness` has it."""
        other, _ = self._run(config)
        last = self.num_steps - 1
        squared = (other.latents[last] - self.dense.latents[last]).square().flatten(1).mean(dim=1)
        return float(-10 * (squared + 1e-12).log10().mean())

    def _run(self, config: RASConfig) -> tuple[NoiseRecorder, Callable[[Plan], Plan]]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AdviceWarning)
            recorders, handle = self._call.watched(config, NoiseRecorder)
        costed = handle._session.latest.costed
        if len(recorders) != 1:
            raise ValueError(f"find_plan: got a call of {len(recorders)} runs in a row; allowed: a single one.")
        assert costed is not None
        return recorders[0], costed


def probes(num_steps: int) -> list[int]:
    """The evaluations to leave out, one at a time; in short runs some of them twice."""
    return [min(max(1, round(probe / 28 * num_steps)), num_steps - 2) for probe in PROBES]


class NoiseRecorder(FittedForecast):
    """Leaves all noise as it is, and keeps it.

    Attributes:
        noise: of every evaluation, [B, N, D] float32 each; of every second, third ... token if they are very many.
        latents: what Euler's steps make of all noise [B, N, D], after the evaluations that are probed and the last one.
    """

    def __init__(self, grid: TokenGrid, sigmas: Sequence[float]) -> None:
        super().__init__((), grid, sigmas)
        self.noise: list[torch.Tensor] = []
        self.latents: dict[int, torch.Tensor] = {}
        num_steps = len(sigmas) - 1
        self._keeps = {*probes(num_steps), num_steps - 1}

    def adjusted(
        self, index: int, model_output: torch.Tensor, sample: torch.Tensor, active: torch.Tensor | None
    ) -> torch.Tensor:
        """The noise itself."""
        noise, latents = self.grid.patchify(model_output).float(), self.grid.patchify(sample).float()
        if noise.numel() != model_output.numel() or latents.shape != noise.shape:
            raise ValueError(
                "find_plan: got latents that hold more than the tokens of a picture or video; allowed: those alone."
            )
        every = -(-noise.numel() // MAX_VALUES)
        self.noise.append(noise[:, ::every].clone())
        if index in self._keeps:
            self.latents[index] = latents + (self.sigmas[index + 1] - self.sigmas[index]) * noise
        return model_output


def _growth(dense: NoiseRecorder, other: NoiseRecorder, left_out: int) -> float:
    """By what an error made in an evaluation has grown at the end: the geometric mean over pictures."""

    def distance(index: int) -> torch.Tensor:
        return (other.latents[index] - dense.latents[index]).flatten(1).norm(dim=1).clamp_min(1e-12)

    return float((distance(len(dense.noise) - 1) / distance(left_out)).log().mean().exp())


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
