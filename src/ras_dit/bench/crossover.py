"""Where RAS gains and where it does not: picture sizes against ratios, from measured dense and region steps."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from ras_dit.bench.cases import Case
from ras_dit.bench.checks import fresh_check, probe, require
from ras_dit.bench.loops import StepTimer, run_loop, short_call, short_config
from ras_dit.bench.modes import settle
from ras_dit.plan import build_plan

NUM_STEPS = 8
GAIN = 1.05
"""A loop that is not faster by this factor is counted as no gain: repetitions differ by a few per cent."""


def size_row(
    case: Case,
    pipe: Any,
    device: str,
    ratios: Sequence[float],
    num_steps: int,
    on_run: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Steps of one picture size, and what they make of a whole loop.

    Args:
        case: of this size.
        pipe: the case's, compiled or not.
        device: where it is.
        ratios: shares of tokens below 1.
        num_steps: evaluations of the whole loop.
        on_run: called after every loop.

    Returns:
        ``size``, ``num_tokens``, ``dense_step`` (seconds, without RAS) and ``ratios``: for each its ``region_step``,
        ``captured_step`` (a dense step with RAS), ``speedup`` of the loop that the case's schedule makes of these, and
        its ``limit`` by FLOPs.

    Raises:
        RefusedError: a check is not green at this size.
    """
    call = case.call(pipe, device, NUM_STEPS)
    settle(pipe, call)
    require([fresh_check(probe(pipe, call), case.dtype)])
    run_loop(pipe, short_call(call))
    with StepTimer(pipe, case.calls_per_step).watching() as timer:
        run_loop(pipe, call)
    dense = statistics.median(timer.seconds()[1:])
    on_run()
    row: dict[str, Any] = {"size": str(case.size), "dense_step": dense, "ratios": []}
    for ratio in ratios:
        found = _ratio(case, pipe, call, ratio, num_steps, dense)
        row["num_tokens"] = found.pop("num_tokens")
        row["ratios"].append(found)
        on_run()
    return row


def _ratio(case: Case, pipe: Any, call: dict[str, Any], ratio: float, num_steps: int, dense: float) -> dict[str, Any]:
    from ras_dit.engine import accelerate

    config = case.schedule.config(ratio, num_steps)
    with accelerate(pipe, short_config(config)) as handle:
        run_loop(pipe, short_call(call))
        run_loop(pipe, call)
        steps, plan = handle.trace.steps, handle.latest_plan
    assert plan is not None
    assert plan.cost is not None
    of_kind = {
        kind: statistics.median(step.seconds or 0.0 for step in steps if step.kind == kind)
        for kind in ("dense", "region")
    }
    whole = build_plan(config, num_steps, plan.num_tokens)
    active = next(step.num_active for step in plan if step.kind == "region")
    num_region = whole.num_region_steps
    spent = num_region * of_kind["region"] + (num_steps - num_region) * of_kind["dense"]
    flops = num_region * plan.cost.work_of[active].flops + (num_steps - num_region) * plan.cost.dense_flops
    return {
        "ratio": ratio,
        "num_active": active,
        "num_tokens": plan.num_tokens,
        "region_step": of_kind["region"],
        "captured_step": of_kind["dense"],
        "speedup": num_steps * dense / spent,
        "limit": num_steps * plan.cost.dense_flops / flops,
    }


def gains_from(rows: Sequence[dict[str, Any]]) -> dict[str, str | None]:
    """Ratio -> the smallest of the measured sizes from which on every larger one gains; None if none does."""
    found: dict[str, str | None] = {}
    ordered = sorted(rows, key=lambda row: row["num_tokens"])
    for place, one in enumerate(ordered[0]["ratios"] if ordered else []):
        found[f"{one['ratio']:g}"] = None
        for row in reversed(ordered):
            if row["ratios"][place]["speedup"] < GAIN:
                break
            found[f"{one['ratio']:g}"] = row["size"]
    return found
