"""The whole speed benchmark on tiny twins of its cases: what runs, in which order, and what goes on after an error."""

from __future__ import annotations

import dataclasses
import io
import json
from typing import Any

import pytest
import torch
from rich.console import Console

from bench_twins import QUICK, benchmark, tiny
from ras_dit.bench import CASES, Settings
from ras_dit.bench import measure as bench_measure
from ras_dit.bench import run as bench_run
from ras_dit.bench.architectures import Size
from ras_dit.bench.cases import Case
from ras_dit.bench.checks import (
    Check,
    eager_checks,
)
from ras_dit.bench.crossover import num_runs, size_row
from ras_dit.bench.inside import PARTS, PartTimer, around_parts
from ras_dit.bench.loops import StepTimer, run_loop, short_config
from ras_dit.bench.memory import allocated_peak, memory_row
from ras_dit.bench.modes import blocks_of, in_mode
from ras_dit.bench.profiling import group_of
from ras_dit.bench.report import profile_lines, tables
from ras_dit.config import RASConfig
from ras_dit.engine import accelerate


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.dimensions is not None])
def test_the_whole_harness_on_every_architecture(name: str) -> None:
    ran = benchmark()
    assert ran.run([CASES[name].tiny()])
    case = ran.results.cases[f"{name}-tiny"]
    dense, whole, region = case["rows"]
    assert [check["is_green"] for check in case["checks"]["eager"]] == [True] * 3
    assert dense["name"] == "dense"
    assert len(dense["step_seconds"]) == 8
    assert dense["speedup"] == 1.0
    assert whole["limit"] == 1.0
    assert whole["num_active"] is None
    assert region["step_kinds"].count("region") == 5
    assert region["num_active"] == round(region["num_tokens"] / 4)
    assert 1 < region["limit"] < 2
    assert region["share_of_limit"] == pytest.approx(region["speedup"] / region["limit"])
    assert region["memory"]["kv_cache_estimate_bytes"] == CASES[name].num_rows * region["kv_cache_bytes_per_row"]
    assert region["memory"]["extra_bytes"] == region["memory"]["peak_bytes"] - dense["peak_bytes"]
    if name != "lumina-next":  # whose pipeline is spared a second table, larger than the tiny model's cache
        assert region["memory"]["extra_bytes"] > 0
    overhead = region["overhead"]
    assert overhead["selection_ms"] > 0
    assert overhead["forecast_ms"] > 0
    assert overhead["share"] == pytest.approx(
        (overhead["selection_ms"] + overhead["forecast_ms"]) / 1e3 / dense["dense_step"], rel=1e-2
    )
    for row in (dense, region):
        assert row["profile"]["attention"] > 0
        assert row["profile"]["wall"] > 0
    assert dense["profile"]["added by RAS"] == 0 < region["profile"]["added by RAS"]
    json.dumps(case)


def test_an_error_of_the_harness_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("ras_dit.bench.run.measure", broken)
    with pytest.raises(RuntimeError, match="boom"):
        benchmark().run([CASES["sd3-medium"].tiny()])


def test_memory_that_runs_out_stops_a_case_or_a_size_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["sd3-medium"].tiny()
    settings = dataclasses.replace(QUICK, has_crossover=True, has_loops=False, sizes=("64", "96"), ratios=(0.25,))

    def full(sized: Case, *rest: Any) -> dict[str, Any]:
        if sized.size == Size(96, 96):
            raise torch.OutOfMemoryError("of 139 GiB\nand more")
        return size_row(sized, *rest)

    monkeypatch.setattr("ras_dit.bench.run.size_row", full)
    ran = benchmark(settings)
    assert ran.run([case])
    found = ran.results.cases["sd3-medium-tiny"]["crossover"]["eager"]
    assert [row["size"] for row in found["rows"]] == ["64x64"]
    assert found["left_out"] == {"96x96": "ran out of memory (of 139 GiB)"}

    def never(*_: Any) -> None:
        raise torch.OutOfMemoryError("of 139 GiB")

    monkeypatch.setattr("ras_dit.bench.run.eager_checks", never)
    ran = benchmark(QUICK)
    assert not ran.run([case])
    assert ran.results.cases["sd3-medium-tiny"]["refused"] == {"eager": "OutOfMemoryError: of 139 GiB"}


def test_cuda_graphs_that_are_not_replayed_get_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = iter(range(0, 10**6, 3))  # asking counts as one: two more every time
    with monkeypatch.context() as patched:
        patched.setattr("ras_dit.bench.measure.num_recorded", lambda device: next(recorded))
        ran = benchmark(QUICK)
        assert not ran.run([CASES["sd3-medium"].tiny()])
    refused = ran.results.cases["sd3-medium-tiny"]["refused"]
    assert refused == {"eager": "RefusedError: dense: 2 CUDA graphs were recorded in a timed loop."}
    skipped = iter((0, 1))
    monkeypatch.setattr("ras_dit.bench.run.num_without_graphs", lambda: next(skipped))
    ran = benchmark(QUICK)
    assert not ran.run([CASES["sd3-medium"].tiny()])
    assert "without CUDA graphs" in ran.results.cases["sd3-medium-tiny"]["refused"]["eager"]


def test_a_mode_leaves_nothing_behind() -> None:
    _, pipe, _ = tiny("sd3-medium")
    limit = torch._dynamo.config.recompile_limit
    with in_mode(pipe, "compiled", "aot_eager"):
        assert all(block._compiled_call_impl is not None for block in blocks_of(pipe))
        assert torch._dynamo.config.recompile_limit >= 32
    assert len(blocks_of(pipe)) == 3
    assert all(block._compiled_call_impl is None for block in blocks_of(pipe))
    assert torch._dynamo.config.recompile_limit == limit
    with pytest.raises(ValueError, match="mode: got 'fast'; allowed: eager"), in_mode(pipe, "fast"):
        pass


def test_all_loops_of_a_size_are_counted() -> None:
    case, pipe, _ = tiny("sd3-medium")
    counted: list[int] = []
    size_row(case, pipe, "cpu", (0.5, 0.25), 8, on_run=lambda: counted.append(1))
    assert len(counted) == num_runs(2)


def test_picture_sizes_alone_are_checked_at_their_own_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["sd3-medium"].tiny()
    sizes, probed = ("96", "64"), []
    monkeypatch.setattr(
        "ras_dit.bench.run.eager_checks",
        lambda pipe, call, *more: probed.append(call["latents"].shape) or eager_checks(pipe, call, *more),
    )
    settings = dataclasses.replace(QUICK, modes=("compiled",), backend="eager", sizes=sizes, ratios=(0.25,))
    ran = benchmark(dataclasses.replace(settings, has_crossover=True, has_loops=False))
    assert ran.run([case])
    assert [tuple(shape[-2:]) for shape in probed] == [(8, 8)]
    rows = ran.results.cases["sd3-medium-tiny"]["crossover"]["compiled"]["rows"]
    assert [row["size"] for row in rows] == ["64x64", "96x96"]
    for row in rows:
        assert [check["name"].split()[0] for check in row["checks"]] == ["compiled", "compiled", "region"]
        assert all(check["is_green"] for check in row["checks"])
    smallest = case.at(Size(64, 64)).estimate()
    enough = 1.16 * (smallest["weights"] + smallest["kv_cache"])  # for the smallest size, not for the case's own
    monkeypatch.setattr("ras_dit.bench.cases.free_bytes", lambda device: int(enough))
    assert case.why_skipped("cpu")
    ran = benchmark(dataclasses.replace(settings, modes=("eager",), has_crossover=True, has_loops=False))
    assert ran.run([case])
    assert ran.results.cases["sd3-medium-tiny"]["crossover"]["eager"]["rows"]
    broken = Check("region step over fresh keys equals dense", 1.0, 0.0)
    monkeypatch.setattr("ras_dit.bench.crossover.fresh_check", lambda *_: broken)
    ran = benchmark(dataclasses.replace(settings, modes=("eager",), has_crossover=True, has_loops=False))
    assert not ran.run([case])
    assert ran.results.cases["sd3-medium-tiny"]["crossover"] == {}


def test_allocations_are_counted_at_their_peak() -> None:
    def work() -> None:
        first = torch.empty(1_000_000, dtype=torch.uint8)
        del first
        second, third = torch.empty(3_000_000, dtype=torch.uint8), torch.empty(2_000_000, dtype=torch.uint8)
        del second, third

    assert allocated_peak(work) == pytest.approx(5_000_000, rel=1e-3)
    row = memory_row(100, 180, 64)
    assert row["extra_bytes"] == 80
    assert row["extra_over_estimate"] == 1.25
    assert memory_row(100, 180, 0)["extra_over_estimate"] is None
    assert memory_row(100, None, 64)["extra_bytes"] is None


def test_parts_of_ras_are_timed_and_released() -> None:
    case, pipe, call = tiny("wan-1.3b")
    timer = PartTimer(pipe)
    with accelerate(pipe, short_config(RASConfig(sample_ratio=0.5))) as handle:
        run_loop(pipe, call)
        with around_parts(handle, timer):
            run_loop(pipe, call)
        times = timer.seconds()
        with StepTimer(pipe, case.calls_per_step).watching() as steps:
            run_loop(pipe, call)
        assert timer.seconds() == times, "nothing is timed after the block"
    assert set(times) == set(PARTS)
    assert set(times["selection"]) == set(range(8))
    assert len(steps.seconds()) == 8


def test_a_gpu_is_profiled_after_all_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A profiler slows down what comes after it in the same process."""
    order: list[str] = []

    def note(module: Any, name: str) -> None:
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: order.append(name) or function(*a, **k))

    note(bench_run, "profile_step")
    note(bench_measure, "timed_loop")
    settings = dataclasses.replace(QUICK, modes=("eager", "compiled"), backend="eager", ratios=(0.25,))
    ran = benchmark(dataclasses.replace(settings, device="cpu:0"))  # like a GPU, a device that is not "cpu"
    assert ran.run([CASES["sd3-medium"].tiny(), CASES["wan-1.3b"].tiny()])
    assert order.index("profile_step") > max(at for at, name in enumerate(order) if name == "timed_loop")
    cases = {
        name: [row["mode"] for row in case["rows"] if "profile" in row] for name, case in ran.results.cases.items()
    }
    assert cases == {"sd3-medium-tiny": [], "wan-1.3b-tiny": ["compiled"] * 2}


def test_the_last_that_can_be_measured_is_profiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the last that is asked for: a case or a size may not fit."""
    original = Case.why_skipped

    def why_skipped(self: Case, device: str, is_loaded: bool = False) -> str | None:
        is_large = self.name == "wan-1.3b-tiny" or self.size.num_pixels > 64 * 64
        return "too large" if is_large else original(self, device, is_loaded)

    monkeypatch.setattr(Case, "why_skipped", why_skipped)
    settings = dataclasses.replace(QUICK, device="cpu:0", has_crossover=True, has_loops=False, ratios=(0.25,))
    ran = benchmark(dataclasses.replace(settings, sizes=("64", "96")))
    assert ran.run([CASES["sd3-medium"].tiny(), CASES["wan-1.3b"].tiny()])
    (row,) = ran.results.cases["sd3-medium-tiny"]["crossover"]["eager"]["rows"]
    assert "profile" in row
    assert "profile" in row["ratios"][0]


def test_a_size_that_no_picture_has_leaves_all_others_measured() -> None:
    settings = dataclasses.replace(QUICK, has_crossover=True, sizes=("64", "100"), ratios=(0.25,))
    ran = benchmark(settings)
    with pytest.raises(ValueError, match="100"):
        ran.run([CASES["sd3-medium"].tiny()])
    case = ran.results.cases["sd3-medium-tiny"]
    assert [row["name"] for row in case["rows"]] == ["dense", "ratio 0.25"]
    assert [row["size"] for row in case["crossover"]["eager"]["rows"]] == ["64x64"]


def test_what_was_timed_is_kept_whatever_comes_after(monkeypatch: pytest.MonkeyPatch) -> None:
    def boom(*_: Any, **__: Any) -> None:
        raise RuntimeError("boom\nand more")

    for place in (
        "run.profile_step",
        "run.overhead",
        "measure.short_peak",
        "crossover.profile_step",
        "crossover.short_peak",
    ):
        monkeypatch.setattr(f"ras_dit.bench.{place}", boom)
    said: list[str] = []
    settings = dataclasses.replace(QUICK, has_crossover=True, sizes=("64",), ratios=(0.25,))
    ran = benchmark(settings, said=said)
    assert ran.run([CASES["sd3-medium"].tiny()])
    case = ran.results.cases["sd3-medium-tiny"]
    dense, region = case["rows"]
    assert dense["missing"] == {"memory": "boom", "profile": "boom"}
    assert region["missing"] == {"memory": "boom", "overhead": "boom", "profile": "boom"}
    assert region["speedup"] > 0
    assert "sd3-medium-tiny, eager: no overhead of ratio 0.25: boom" in said
    assert "sd3-medium-tiny, eager, 64x64: no memory: boom" in said
    (row,) = case["crossover"]["eager"]["rows"]
    assert row["missing"] == {"profile": "boom"}
    assert row["ratios"][0]["missing"] == {"memory": "boom", "profile": "boom"}
    assert "profile" not in row
    for table in tables(ran.results.cases):
        Console(file=io.StringIO()).print(table)
    assert profile_lines(case) == []


def test_modes_after_one_that_is_broken_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    original = bench_run.measure

    def broken(pipe: Any, *args: Any, **options: Any) -> Any:
        if not options["has_long_warm_up"]:
            raise RuntimeError("boom")
        return original(pipe, *args, **options)

    monkeypatch.setattr(bench_run, "measure", broken)
    ran = benchmark(dataclasses.replace(QUICK, modes=("eager", "compiled"), backend="eager", ratios=(0.25,)))
    with pytest.raises(RuntimeError, match="boom"):
        ran.run([CASES["sd3-medium"].tiny(), CASES["wan-1.3b"].tiny()])
    assert {row["mode"] for row in ran.results.cases["wan-1.3b-tiny"]["rows"]} == {"compiled"}
    case = ran.results.cases["sd3-medium-tiny"]
    assert {row["mode"] for row in case["rows"]} == {"compiled"}
    assert case["refused"]["eager"] == "RuntimeError: boom"


def test_operations_are_grouped_by_name() -> None:
    names = ("aten::_scaled_dot_product_flash_attention", "aten::addmm", "aten::index_select", "triton_poi_0", "foo")
    assert [group_of(name) for name in names] == ["attention", "linear", "moving rows", "compiled", "other"]


def test_devices_that_cannot_be_timed_are_refused() -> None:
    with pytest.raises(ValueError, match="--device: got 'mps'; allowed: cpu, cuda"):
        Settings(device="mps")
