"""Dense and RAS loops in turns, in one process: medians, steps, peak memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ras_dit.bench.checks import RefusedError
from ras_dit.bench.loops import (
    StepTimer,
    by_step,
    run_loop,
    short_call,
    short_config,
    timed_loop,
    weights_device,
)
from ras_dit.bench.memory import memory_row, short_peak
from ras_dit.bench.modes import num_recorded
from ras_dit.config import RASConfig

if TYPE_CHECKING:
    from ras_dit.cpu_layers import LayerTimings
    from ras_dit.engine import Handle
    from ras_dit.plan import Plan

DENSE = "dense"


def measure(
    pipe: Any,
    call: dict[str, Any],
    configs: Mapping[str, RASConfig],
    repeats: int,
    num_rows: int,
    calls_per_step: int,
    on_run: Callable[[], None] = lambda: None,
    has_long_warm_up: bool = False,
) -> list[dict[str, Any]]:
    """Rows of a pipeline as it is (compiled or not), dense first; every repetition runs all configs once, in turn.

    Args:
        pipe: RAS is not enabled on it.
        call: arguments of one loop.
        configs: name -> what to compare with dense.
        repeats: timed rounds, after an untimed one of short loops.
        num_rows: images times guidance rows.
        calls_per_step: transformer calls of a dense evaluation.
        on_run: called after every loop.
        has_long_warm_up: warm up with whole loops, so that compiling is never timed.

    Returns:
        One mapping per config; `ras_dit.bench.results` says what is in it.
    """
    loops = [_Loop(DENSE, None), *(_Loop(name, config) for name, config in configs.items())]
    for loop in loops:
        if has_long_warm_up:
            loop.run(pipe, call, calls_per_step)
            loop.forget()
        else:
            loop.warm_up(pipe, call)
        on_run()
    for _ in range(repeats):
        for loop in loops:
            loop.run(pipe, call, calls_per_step)
            if loop.num_recorded:
                raise RefusedError(f"{loop.name}: {loop.num_recorded} CUDA graphs were recorded in a timed loop.")
            on_run()
    for loop in loops:
        loop.find_peak(pipe, call)
        on_run()
    return [loop.row(loops[0], num_rows) for loop in loops]


def look_into(row: dict[str, Any], name: str, look: Callable[[], Any]) -> None:
    """Add what a look at something gives to a row; if it fails, why, among ``missing``: what was timed before is kept.

    Args:
        row: to add to.
        name: under which.
        look: gives it.
    """
    try:
        row[name] = look()
    except Exception as error:
        row.setdefault("missing", {})[name] = first_line(error)


def first_line(error: Exception) -> str:
    """Of what an error says."""
    return (str(error) or "no message").splitlines()[0]


def num_loops(num_configs: int, repeats: int) -> int:
    """How often `measure` calls ``on_run``."""
    return (num_configs + 1) * (repeats + 2)


class _Loop:
    """One config (None: dense, without RAS) and what its loops took."""

    def __init__(self, name: str, config: RASConfig | None) -> None:
        self.name, self.config = name, config
        self.seconds: list[float] = []
        self.steps: list[list[float]] = []
        self.handle: Handle | None = None
        self.timings: LayerTimings = {}
        self.peak: int | None = None
        self.missing: dict[str, str] = {}
        self.num_recorded = 0  # CUDA graphs, in the latest loop

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def plan(self) -> Plan:
        assert self.handle is not None
        assert self.handle.latest_plan is not None
        return self.handle.latest_plan

    def warm_up(self, pipe: Any, call: dict[str, Any]) -> None:
        """Dense, capturing and region steps once."""
        from ras_dit.engine import accelerate

        if self.config is None:
            run_loop(pipe, short_call(call))
            return
        with accelerate(pipe, short_config(self.config)) as handle:
            run_loop(pipe, short_call(call))
            self.timings = handle._session.layer_timings

    def run(self, pipe: Any, call: dict[str, Any], calls_per_step: int) -> None:
        from ras_dit.engine import accelerate

        if self.config is None:
            with StepTimer(pipe, calls_per_step).watching() as timer:
                self._time(pipe, call)
            self.steps.append(timer.seconds())
            return
        with accelerate(pipe, self.config) as handle:
            handle._session.layer_timings.update(self.timings)  # layers were timed before the clock runs
            if self.config.static_memory:  # its addresses are new: CUDA graphs are recorded once more
                run_loop(pipe, call)
            self._time(pipe, call)
        self.handle = handle
        self.steps.append([step.seconds or 0.0 for step in handle.trace.steps])

    def _time(self, pipe: Any, call: dict[str, Any]) -> None:
        before = num_recorded(weights_device(pipe))
        self.seconds.append(timed_loop(pipe, call))
        self.num_recorded = max(0, num_recorded(weights_device(pipe)) - before - 1)

    def forget(self) -> None:
        """Leave out what ran so far."""
        self.seconds, self.steps = [], []

    def find_peak(self, pipe: Any, call: dict[str, Any]) -> None:
        """Peak memory of a short loop; none of a config that never fills a cache."""
        if self.config is None or self.plan.num_region_steps:
            found: dict[str, Any] = {}
            look_into(found, "memory", lambda: short_peak(pipe, call, self.config))
            self.peak, self.missing = found.get("memory"), found.get("missing", {})

    def row(self, dense: _Loop, num_rows: int) -> dict[str, Any]:
        step_seconds = by_step(self.steps)
        common = {
            "name": self.name,
            "seconds": self.seconds,
            "median": self.median,
            "steps": len(self.steps[0]),
            "step_seconds": step_seconds,
            "speedup_same_mode": dense.median / self.median,
            **({"missing": self.missing} if self.missing else {}),
        }
        if self.config is None:
            return {**common, "dense_step": statistics.median(step_seconds), "peak_bytes": self.peak}
        return {**common, **self._planned(), **self._memory(dense, num_rows)}

    def _planned(self) -> dict[str, Any]:
        assert self.config is not None
        assert self.handle is not None
        plan, trace = self.plan, self.handle.trace
        counts = [step.num_active for step in plan if step.kind == "region"]
        times = {
            kind: [seconds for step, seconds in zip(trace.steps, by_step(self.steps), strict=True) if step.kind == kind]
            for kind in ("dense", "region")
        }
        medians = {f"{kind}_step": statistics.median(found) if found else None for kind, found in times.items()}
        return {
            "config": self.config.to_dict(),
            "step_kinds": [step.kind for step in trace.steps],
            "limit": plan.speedup_limit,
            "token_steps": plan.token_steps,
            **medians,
            "num_active": counts[0] if counts else None,
            "num_tokens": plan.num_tokens,
            "kv_cache_bytes_per_row": plan.cost.kv_cache_bytes if plan.cost else 0,
            "notes": list(trace.notes),
        }

    def _memory(self, dense: _Loop, num_rows: int) -> dict[str, Any]:
        if self.peak is None or self.plan.cost is None:
            return {}
        return {"memory": memory_row(dense.peak, self.peak, num_rows * self.plan.cost.kv_cache_bytes)}
