"""Where RAS gains and where it does not: picture sizes against ratios, from measured dense and region steps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ras_dit.bench.cases import Case
from ras_dit.bench.checks import PROBE, Probe, compiled_checks, eager_probe, fresh_check, probe, require
from ras_dit.bench.loops import SHORT_WARMUP, StepTimer, run_loop, short_call, short_config
from ras_dit.bench.measure import look_into
from ras_dit.bench.memory import memory_row, short_peak
from ras_dit.bench.modes import config_in, settle
from ras_dit.bench.profiling import profile_step
from ras_dit.config import RASConfig
from ras_dit.plan import Plan, build_plan

NUM_STEPS = 3
"""Dense evaluations of a loop without RAS, the first of which is not counted; region steps of one with RAS, after the
dense step that fills the cache."""
MIN_ROUNDS, MAX_ROUNDS = 2, 5
ENOUGH = 20.0
"""Seconds of a size: no further round begins after so many, once there are `MIN_ROUNDS`."""


def size_row(
    case: Case,
    pipe: Any,
    device: str,
    ratios: Sequence[float],
    num_steps: int,
    mode: str = "eager",
    eager: Probe | None = None,
    on_run: Callable[[], None] = lambda: None,
    is_profiled: bool = True,
) -> dict[str, Any]:
    """Steps of one picture size, and what they make of a whole loop. Dense loops and those of every ratio run in turn,
    round by round, so that a machine that drifts changes all of them alike.

    Args:
        case: of this size.
        pipe: the case's, in this mode.
        device: where it is.
        ratios: shares of tokens below 1.
        num_steps: evaluations of the whole loop.
        mode: one of `ras_dit.bench.modes.MODES`.
        eager: what `eager_probe` found at this size before the pipeline was compiled; None if it is not.
        on_run: called `num_runs` times.
        is_profiled: look where the time of a step goes, after all is timed.

    Returns:
        ``size``, ``num_tokens``, ``dense_step`` (seconds, without RAS), its ``profile``, ``num_rounds``, ``checks`` and
        ``ratios``: for each its ``region_step``, ``captured_step`` (a dense step with RAS that fills the cache),
        ``speedup_same_mode`` of the loop that the case's schedule makes of these, its ``limit`` by FLOPs, and what
        `enable` ``predicted``; for the lowest also the ``profile`` of a region step, and ``memory``.

    Raises:
        RefusedError: a check is not green at this size.
    """
    call = case.call(pipe, device, NUM_STEPS)
    if eager is not None:
        settle(pipe, call)
        checks = compiled_checks(pipe, call, case.dtype, eager, config_in(mode, PROBE))
    else:
        checks = [fresh_check(probe(pipe, call) if device == "cpu" else eager_probe(pipe, call), case.dtype)]
    require(checks, None if eager is None else eager.rounding)
    found = [_Ratio(ratio, config_in(mode, case.schedule.config(ratio, num_steps))) for ratio in ratios]
    dense: list[float] = []

    def run_round() -> None:
        with StepTimer(pipe, case.calls_per_step, is_whole=True).watching() as timer:
            run_loop(pipe, call)
        dense.extend(timer.seconds()[1:])
        on_run()
        for one in found:
            one.run(pipe, call, case.calls_per_step)
            on_run()

    run_round()
    if eager is not None:  # this one compiled
        dense.clear()
        for one in found:
            one.seconds.clear()
    num_rounds, started = int(eager is None), time.perf_counter()
    while num_rounds < MIN_ROUNDS or (num_rounds < MAX_ROUNDS and time.perf_counter() - started < ENOUGH):
        run_round()
        num_rounds += 1
    for _ in range((MAX_ROUNDS + 1 - num_rounds - (eager is not None)) * (1 + len(ratios))):
        on_run()
    dense_step = statistics.median(dense)
    ratios_found = [one.row(dense_step, num_steps) for one in found]
    leanest = min(range(len(found)), key=lambda place: found[place].ratio)
    look_into(ratios_found[leanest], "memory", partial(_memory_of, case, pipe, call, found[leanest], on_run))
    row: dict[str, Any] = {
        "size": str(case.size),
        "num_tokens": found[0].latest_plan.num_tokens,
        "dense_step": dense_step,
        "num_rounds": num_rounds,
        "checks": [check.to_dict() for check in checks],
        "ratios": ratios_found,
    }
    config = found[leanest].config
    for target, profiled in ((row, None), (ratios_found[leanest], config)) if is_profiled else ():
        is_warm = profiled is None or not config.static_memory
        look_into(target, "profile", partial(profile_step, pipe, call, profiled, case.calls_per_step, is_warm))
        on_run()
    return row


def _memory_of(
    case: Case, pipe: Any, call: dict[str, Any], leanest: _Ratio, on_run: Callable[[], None]
) -> dict[str, Any]:
    """What a ratio takes at its peak beside dense."""

    def peak_of(config: RASConfig | None, steps: int) -> int | None:
        peak = short_peak(pipe, call, config, steps)
        on_run()
        return peak

    cost = leanest.latest_plan.cost
    assert cost is not None
    peaks = peak_of(None, SHORT_WARMUP), peak_of(leanest.config, SHORT_WARMUP + 1)
    return memory_row(*peaks, case.num_rows * cost.kv_cache_bytes)


def num_runs(num_ratios: int) -> int:
    """How often `size_row` calls ``on_run``."""
    return (MAX_ROUNDS + 1) * (1 + num_ratios) + 4


@dataclass
class _Ratio:
    """One ratio: its config for the whole loop, and the seconds of the steps of its short ones, by kind."""

    ratio: float
    config: RASConfig
    seconds: dict[str, list[float]] = field(default_factory=dict)
    plan: Plan | None = None

    @property
    def latest_plan(self) -> Plan:
        assert self.plan is not None
        return self.plan

    def run(self, pipe: Any, call: dict[str, Any], calls_per_step: int) -> None:
        from ras_dit.engine import accelerate

        num_dense = 2 if self.config.static_memory else 1  # the first finds out how much memory the second needs
        with accelerate(pipe, short_config(self.config).replace(warmup_steps=num_dense)) as handle:
            short = short_call(call, num_dense + NUM_STEPS)
            if self.config.static_memory:  # its addresses are new: CUDA graphs are recorded once more
                run_loop(pipe, short)
            with StepTimer(pipe, calls_per_step, is_whole=True).watching() as timer:
                run_loop(pipe, short)
        self.plan = handle.latest_plan
        for step, seconds in list(zip(handle.trace.steps, timer.seconds(), strict=True))[num_dense - 1 :]:
            self.seconds.setdefault(step.kind, []).append(seconds)

    def row(self, dense_step: float, num_steps: int) -> dict[str, Any]:
        plan = self.latest_plan
        region, captured = (statistics.median(self.seconds[kind]) for kind in ("region", "dense"))
        whole = build_plan(self.config, num_steps, plan.num_tokens)
        assert plan.cost is not None
        flops = sum(plan.cost.work_of[step.num_active].flops for step in whole)
        whole = replace(whole, cost=replace(plan.cost, total_flops=flops))
        num_region = whole.num_region_steps
        return {
            "ratio": self.ratio,
            "num_active": next(step.num_active for step in plan if step.kind == "region"),
            "region_step": region,
            "captured_step": captured,
            "speedup_same_mode": num_steps * dense_step / (num_region * region + (num_steps - num_region) * captured),
            "limit": whole.speedup_limit,
            "predicted": whole.predicted_speedup,
        }
