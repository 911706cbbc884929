"""The plan: what each transformer evaluation of a run will compute, known before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ras_dit.config import Position, RASConfig
from ras_dit.step_ratios import listed_shares

StepKind = Literal["dense", "region", "skip"]

LARGE_GRID = 1024
"""Tokens from which on region steps compute multiples of 64, unless told otherwise: few shapes, full tiles."""


@dataclass(frozen=True)
class StepPlan:
    """One transformer evaluation.

    Attributes:
        index: evaluation number, from 0.
        kind: ``dense`` (all tokens), ``region`` (some) or ``skip`` (none, all forecast).
        num_active: image tokens computed.
        selects: a region step with an active set of its own; without it the last set is used again.
        captures: a dense step whose keys and values are kept, because a region step reads them.
    """

    index: int
    kind: StepKind
    num_active: int
    selects: bool = False
    captures: bool = False


@dataclass(frozen=True)
class Work:
    """What one transformer evaluation does for one row of the batch. FLOPs count a multiply-add as two.

    Attributes:
        linear_flops: of linear and convolution layers.
        attention_flops: of attention between queries and keys.
        num_moved: numbers that go into and come out of those layers.
    """

    linear_flops: float
    attention_flops: float
    num_moved: float

    @property
    def flops(self) -> float:
        """Both together."""
        return self.linear_flops + self.attention_flops


@dataclass(frozen=True)
class Cost:
    """Estimates from the transformer's dimensions, for one row of the batch. FLOPs count a multiply-add as two.

    Attributes:
        dense_flops: one dense evaluation.
        total_flops: the whole plan.
        kv_cache_bytes: keys and values kept between steps (with ``kv_forecast`` their slopes, too), in
            ``kv_cache_dtype`` or else the transformer's dtype, of the layers that keep them.
        work_of: one evaluation by its number of computed image tokens, as far as the plan has it.
        seconds_of: predicted time of one evaluation by its number of computed image tokens, all rows of the batch, what
            the loop does around it included (see `ras_dit.gain`); 0 tokens is a skipped one. Empty without prediction.
        capture_seconds: what an evaluation takes longer that keeps its keys and values.
        num_rows: rows of the transformer's batch that the times are for; None without prediction.
    """

    dense_flops: float
    total_flops: float
    kv_cache_bytes: int
    work_of: Mapping[int, Work] = field(default_factory=dict)
    seconds_of: Mapping[int, float] = field(default_factory=dict)
    capture_seconds: float = 0.0
    num_rows: int | None = None

    @property
    def described_cache(self) -> str:
        """Memory for keys and values, as users read it."""
        each = self.kv_cache_bytes / 2**20
        num_rows = self.num_rows or 1
        total = f", {num_rows * each:,.1f} MiB for {num_rows}" if each and num_rows > 1 else ""
        return f"K/V cache {each:,.1f} MiB per image and guidance row{total}"

    def seconds(self, step: StepPlan) -> float:
        """Predicted time of an evaluation."""
        return self.seconds_of[step.num_active] + (self.capture_seconds if step.captures else 0.0)


@dataclass(frozen=True)
class Plan:
    """All steps of a run. ``print(plan)`` shows it.

    Attributes:
        steps: one per evaluation.
        num_tokens: image tokens N.
        cost: FLOPs, cache and predicted times; None for a plan without a model.
    """

    steps: tuple[StepPlan, ...]
    num_tokens: int
    cost: Cost | None = None

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> StepPlan:
        return self.steps[index]

    def __iter__(self) -> Iterator[StepPlan]:
        return iter(self.steps)

    @property
    def token_steps(self) -> float:
        """T, the unit of equal compute: the sum over steps of active / all tokens."""
        return sum(step.num_active for step in self.steps) / self.num_tokens

    @property
    def num_region_steps(self) -> int:
        """Evaluations that compute some of the tokens."""
        return sum(step.kind == "region" for step in self.steps)

    @property
    def has_savings(self) -> bool:
        """Whether any evaluation computes less than all tokens."""
        return any(step.kind != "dense" for step in self.steps)

    @property
    def speedup_limit(self) -> float:
        """Dense cost over planned cost: by FLOPs where they are known, else by token-steps."""
        if self.cost is not None:
            return self.cost.dense_flops * len(self) / self.cost.total_flops
        return len(self) / self.token_steps if self.token_steps else float("inf")

    @property
    def predicted_speedup(self) -> float | None:
        """Predicted time of the dense loop over that of this one, fixed costs counted (`ras_dit.gain`); None without a
        prediction."""
        cost = self.cost
        if cost is None or not cost.seconds_of:
            return None
        return cost.seconds_of[self.num_tokens] * len(self) / sum(cost.seconds(step) for step in self.steps)

    @property
    def described_speedup(self) -> str:
        """Both speed-ups in words."""
        limit = f"limit {'' if self.cost is None else 'by FLOPs '}{self.speedup_limit:.2f}x"
        predicted = self.predicted_speedup
        return limit if predicted is None else f"predicted about {predicted:.2f}x ({limit})"

    def captures_at(self, index: int) -> bool:
        """Whether a dense call keeps its keys and values: as planned, or where another kind of step was planned if a
        region step comes before the next dense one."""
        if self.steps[index].captures or self.steps[index].kind == "dense":
            return self.steps[index].captures
        after = next((step for step in self.steps[index + 1 :] if step.kind != "skip"), None)
        return after is not None and after.kind == "region"

    def __str__(self) -> str:
        kinds = {kind: sum(step.kind == kind for step in self.steps) for kind in ("dense", "region", "skip")}
        head = (
            f"{len(self)} evaluations of {self.num_tokens} image tokens: "
            + ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
            + f"; T = {self.token_steps:.2f} token-steps, {self.described_speedup}"
        )
        if self.cost is not None:
            head += (
                f"\n{self.cost.total_flops / 1e9:,.1f} GFLOP instead of {self.cost.dense_flops * len(self) / 1e9:,.1f}"
                f" per image and guidance row; {self.cost.described_cache}"
            )
        rows = [f"{'step':>5}  {'kind':<6}  {'active':>7}  {'share':>6}"]
        for step in self.steps:
            share = step.num_active / self.num_tokens
            rows.append(
                f"{step.index:>5}  {step.kind:<6}  {step.num_active:>7}  {share:>6.1%}  {'#' * round(40 * share)}"
            )
        return head + "\n" + "\n".join(rows)


def build_plan(
    config: RASConfig,
    num_steps: int,
    num_tokens: int,
    num_first: int = 0,
    num_allowed: int | None = None,
    dense_step: int | None = None,
) -> Plan:
    """The plan of a run.

    Args:
        config: what the user chose.
        num_steps: transformer evaluations of the conditional branch (twice the steps, less one, for Heun).
        num_tokens: image tokens N.
        num_first: tokens that every step computes (a given first frame); the ratio is one of the rest.
        num_allowed: tokens that region steps may compute (inside a region of interest); None for all.
        dense_step: a step that must be dense besides those of the config (the first of a second transformer).

    Raises:
        ValueError: a count below 1, a step of the config outside the run or skipped inside the warm-up, or one that is
            both refreshed and skipped.
    """
    if num_steps < 1 or num_tokens < 1:
        raise ValueError(f"plan: got {num_steps} steps of {num_tokens} tokens; allowed: at least 1 of each.")
    if config.rules == "reference":
        steps = list(_reference_steps(config, num_steps, num_tokens, dense_step))
    else:
        allowed = num_tokens if num_allowed is None else num_allowed
        shares = (
            listed_shares(config.step_ratios, num_steps) if config.step_ratios else _adaptive_shares(config, num_steps)
        )
        if dense_step is not None:
            shares[dense_step] = 1.0
        steps = [_step(config, index, share, num_tokens, num_first, allowed) for index, share in enumerate(shares)]
    return Plan(_mark_captures(steps, needs_earlier=config.kv_forecast > 0), num_tokens)


def resolve_position(name: str, position: Position, num_steps: int) -> int:
    """A step index from an index or a share of the run.

    Raises:
        ValueError: the index lies outside the run.
    """
    if isinstance(position, float):
        return min(round(position * num_steps), num_steps - 1)
    if position >= num_steps:
        raise ValueError(
            f"{name}: got {position}, but this run has {num_steps} transformer evaluations (0 to {num_steps - 1}). "
            "Take an index inside the run, or a share of it such as 0.5, which fits any length."
        )
    return position


def within_run(config: RASConfig, num_steps: int) -> tuple[RASConfig, str | None]:
    """A config without the steps that a run of so many evaluations does not have, or computes whole in any case, and
    what was left out (None for nothing): a server serves runs of any length by one config."""
    refresh = [step for step in config.refresh_steps if isinstance(step, float) or step < num_steps]
    dense = {resolve_position("refresh_steps", step, num_steps) for step in refresh}
    warmup = _num_warmup(config, num_steps)

    def can_be_skipped(step: Position) -> bool:
        index = resolve_position("skip_steps", step, num_steps) if isinstance(step, float) else int(step)
        return warmup <= index < num_steps and index not in dense

    skip = [step for step in config.skip_steps if can_be_skipped(step)]
    outside = [f"refresh_steps: {step}" for step in config.refresh_steps if step not in refresh]
    outside += [f"skip_steps: {step}" for step in config.skip_steps if step not in skip]
    changes: dict[str, Any] = {"refresh_steps": tuple(refresh), "skip_steps": tuple(skip)}
    if config.rules == "reference" and config.end_step is not None and config.end_step > num_steps:
        outside.append(f"end_step: {config.end_step}")
        changes["end_step"] = None
    if not outside:
        return config, None
    what = f"{', '.join(outside)}: left out, for this run has {num_steps} evaluations (0 to {num_steps - 1})"
    return config.replace(**changes, forecast_fit=config.forecast_fit), what + (
        f", the first {warmup} of them whole." if warmup < num_steps else "."
    )


def _num_warmup(config: RASConfig, num_steps: int) -> int:
    if isinstance(config.warmup_steps, float):
        return max(1, round(config.warmup_steps * num_steps))
    return config.warmup_steps


def _adaptive_shares(config: RASConfig, num_steps: int) -> list[float]:
    """Share of the tokens of every evaluation, from the options that describe a plan."""
    warmup = _num_warmup(config, num_steps)
    refresh = {resolve_position("refresh_steps", step, num_steps) for step in config.refresh_steps}
    skip = {resolve_position("skip_steps", step, num_steps) for step in config.skip_steps}
    if clash := sorted(skip & refresh):
        raise ValueError(f"skip_steps and refresh_steps: both hold {clash}; a step is either dense or skipped.")
    if early := sorted(step for step in skip if step < warmup):
        raise ValueError(f"skip_steps: got {early}, inside the warm-up of {warmup} steps; skip later ones.")
    every = config.refresh_every
    end = num_steps - 1 if config.end_step is None else config.end_step

    def is_dense(index: int) -> bool:
        is_periodic = every is not None and (index - warmup) % every == every - 1
        return index < warmup or index > end or ((index in refresh or is_periodic) and index not in skip)

    region = [index for index in range(num_steps) if not is_dense(index) and index not in skip]
    shares = [0.0 if index in skip and index <= end else 1.0 for index in range(num_steps)]
    final = config.sample_ratio if config.final_sample_ratio is None else config.final_sample_ratio
    for order, index in enumerate(region):
        shares[index] = config.sample_ratio + (final - config.sample_ratio) * order / max(1, len(region) - 1)
    return shares


def _step(config: RASConfig, index: int, share: float, num_tokens: int, num_first: int, num_allowed: int) -> StepPlan:
    """A step that computes this share of the tokens."""
    if share == 0:
        return StepPlan(index, "skip", 0)
    multiple = config.token_multiple or (64 if num_tokens >= LARGE_GRID else 1)
    wanted = num_first + round(share * (num_tokens - num_first))
    num_active = min(num_tokens, max(1, -(-wanted // multiple)) * multiple)
    if share < 1:
        num_active = min(num_allowed, num_active)
    if num_active >= num_tokens:
        return StepPlan(index, "dense", num_tokens)
    return StepPlan(index, "region", num_active, selects=True)


def _reference_steps(config: RASConfig, num_steps: int, num_tokens: int, dense_step: int | None) -> Iterable[StepPlan]:
    """The authors' step flags and counts, truncations included."""
    start = _num_warmup(config, num_steps)
    end = num_steps if config.end_step is None else config.end_step
    if end > num_steps:
        raise ValueError(f"end_step: got {end}, but this run has {num_steps} steps; allowed: at most {num_steps}.")
    resets = {resolve_position("refresh_steps", step, num_steps) for step in config.refresh_steps}
    num_active = num_tokens
    for index in range(num_steps):
        if config.sample_ratio == 1 or not start <= index <= end or index in resets or index == dense_step:
            yield StepPlan(index, "dense", num_tokens)
            continue
        selects = index < end
        if selects:
            low, high = reference_cut(config, reference_num_skip(config, index, num_steps, num_tokens))
            num_active = num_tokens - low - high
        if num_active == num_tokens:
            yield StepPlan(index, "dense", num_tokens)
        else:
            yield StepPlan(index, "region", num_active, selects=selects)


def reference_num_skip(config: RASConfig, index: int, num_steps: int, num_tokens: int) -> int:
    """Tokens the authors drop at a step, before the cut at both ends truncates it."""
    average = int((1 - config.sample_ratio) * num_tokens)
    length = config.skip_num_step_length
    if not length:
        return average
    start = _num_warmup(config, num_steps)
    shift = index // length - ((num_steps + start) // length) // 2
    num_skip = (average + config.skip_num_step * shift) // 64 * 64
    if not 0 <= num_skip < num_tokens:
        raise ValueError(
            f"skip_num_step={config.skip_num_step}, skip_num_step_length={length}: drops {num_skip} of {num_tokens} "
            f"tokens at step {index}; allowed: 0 to {num_tokens - 1}. Take a smaller skip_num_step."
        )
    return num_skip


def reference_cut(config: RASConfig, num_skip: int) -> tuple[int, int]:
    """How many tokens are dropped at the low and at the high end of the metric."""
    return int(num_skip * (1 - config.high_ratio)), int(num_skip * config.high_ratio)


def _mark_captures(steps: list[StepPlan], needs_earlier: bool) -> tuple[StepPlan, ...]:
    """Keep keys and values on the dense steps that a region step follows before the next dense one.

    Args:
        steps: of a run.
        needs_earlier: keep those of a dense step right before such a one too, for the slope between them.
    """
    is_read = is_followed = False
    marked = []
    for step in reversed(steps):
        if step.kind == "region":
            is_read, is_followed = True, False
        elif step.kind == "dense":
            step = StepPlan(step.index, "dense", step.num_active, captures=is_read or is_followed)
            is_read, is_followed = False, is_read and needs_earlier
        marked.append(step)
    return tuple(reversed(marked))
