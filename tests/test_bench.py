"""The speed benchmark on tiny twins of its cases: what it reports, and when it refuses to."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from rich.console import Console

from benchmarks import record, rounding, speed
from ras_dit.bench import CASES, Benchmark, Results, Settings, case_named, chosen_cases
from ras_dit.bench import measure as bench_measure
from ras_dit.bench import run as bench_run
from ras_dit.bench.architectures import ARCHITECTURES, Size
from ras_dit.bench.cases import Case
from ras_dit.bench.checks import (
    COMPILED_TOLERANCE,
    FRESH_TOLERANCE,
    Check,
    Probe,
    RefusedError,
    compiled_checks,
    eager_checks,
    eager_probe,
    fresh_check,
    probe,
    relative_error,
    require,
)
from ras_dit.bench.crossover import MAX_ROUNDS, MIN_ROUNDS, num_runs, size_row
from ras_dit.bench.inside import PARTS, PartTimer, around_parts
from ras_dit.bench.loops import StepTimer, run_loop, short_config
from ras_dit.bench.memory import allocated_peak, memory_row
from ras_dit.bench.modes import blocks_of, in_mode
from ras_dit.bench.profiling import group_of
from ras_dit.bench.report import profile_lines, tables
from ras_dit.bench.results import compare, gains_from, part_of
from ras_dit.bench.run import silent
from ras_dit.bench.weights import empty_transformer, random_transformer, weight_bytes
from ras_dit.cache import KVCache
from ras_dit.config import RASConfig
from ras_dit.engine import accelerate
from ras_dit.flops import compute_dtype

ONE_PER_ARCHITECTURE = {
    case.dimensions.architecture: name for name, case in reversed(CASES.items()) if case.dimensions is not None
}
QUICK = Settings(num_steps=8, repeats=1, ratios=(1.0, 0.25))
MACHINE = {"code": "1", "device": "cpu"}


def tiny(name: str) -> tuple[Case, Any, dict[str, Any]]:
    case = CASES[name].tiny()
    pipe = case.make("cpu")
    return case, pipe, case.call(pipe, "cpu", 8)


def benchmark(settings: Settings = QUICK, path: Path | None = None, said: list[str] | None = None) -> Benchmark:
    return Benchmark(settings, Results(path, MACHINE), silent, (said if said is not None else []).append)


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


@pytest.mark.parametrize("name", CASES)
def test_dimensions_are_those_of_the_class(name: str) -> None:
    case = CASES[name]
    if case.dimensions is None:
        return
    kind = getattr(diffusers, ARCHITECTURES[case.dimensions.architecture].transformer)
    model = empty_transformer(kind, dict(case.dimensions.arguments), torch.bfloat16)
    assert all(parameter.is_meta for parameter in model.parameters())
    billions = {
        "mid": 0.255,
        "sd3-medium": 2.03,
        "sd3-medium-2048": 2.03,
        "sd3.5-large": 8.06,
        "lumina-next": 1.75,
        "flux-dev": 11.9,
        "flux-kontext": 11.9,
        "qwen-image": 20.4,
        "wan-1.3b": 1.42,
    }
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions[name], rel=0.01)
    assert weight_bytes(model) == pytest.approx(2e9 * billions[name], rel=0.02)
    assert set(CASES[name].tiny().dimensions.arguments) >= set(case.dimensions.arguments)  # type: ignore[union-attr]


def test_random_weights_keep_the_size_of_what_passes_and_wide_parts_wide() -> None:
    arguments = dict(CASES["wan-1.3b"].tiny().dimensions.arguments)  # type: ignore[union-attr]
    model = random_transformer(diffusers.WanTransformer3DModel, arguments, "cpu", torch.bfloat16)
    assert model.scale_shift_table.dtype == torch.float32
    assert model.proj_out.weight.dtype == torch.bfloat16
    assert float(model.blocks[0].ffn.net[0].proj.weight.float().std()) == pytest.approx(32**-0.5, rel=0.1)
    assert float(model.blocks[0].ffn.net[0].proj.bias.float().std()) > 0
    again = random_transformer(diffusers.WanTransformer3DModel, arguments, "cpu", torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("name", sorted(ONE_PER_ARCHITECTURE.values()))
def test_probes_see_the_same_latents_and_undo_themselves(name: str) -> None:
    _, pipe, call = tiny(name)
    before = run_loop(pipe, call)
    attributes = sorted(vars(pipe.scheduler))
    still = probe(pipe, call)
    assert still.active[0] is None
    assert still.active[1] is not None
    assert still.error_to(still, 2, 0) == 0.0
    assert sorted(vars(pipe.scheduler)) == attributes
    assert torch.equal(run_loop(pipe, call), before)


def test_a_broken_merge_gets_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    def loses_rows(cache: KVCache, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros_like(cache.key), cache.value

    monkeypatch.setattr(KVCache, "merge", loses_rows)
    said: list[str] = []
    ran = benchmark(said=said)
    assert not ran.run([CASES["sd3-medium"].tiny()])
    case = ran.results.cases["sd3-medium-tiny"]
    assert case["rows"] == []
    assert "region step over fresh keys equals dense: error" in case["refused"]["eager"]
    assert "no figures" in said[0]


def test_keys_that_do_not_matter_get_no_figures() -> None:
    """Where attention adds nothing, a check of the cache sees nothing, and says so."""
    case, pipe, call = tiny("sd3-medium")
    for block in pipe.transformer.transformer_blocks:
        torch.nn.init.zeros_(block.attn.to_out[0].weight)
    checks, _ = eager_checks(pipe, call, case.dtype)
    with pytest.raises(RefusedError, match="stale keys can be told from fresh ones"):
        require(checks)


def test_a_ratio_of_one_that_differs_gets_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    case, pipe, call = tiny("sd3-medium")

    @contextmanager
    def nudging(pipe: Any, config: RASConfig) -> Iterator[None]:
        hook = pipe.transformer.register_forward_hook(lambda module, args, output: (output[0] * (1 + 1e-6),))
        yield
        hook.remove()

    monkeypatch.setattr("ras_dit.engine.accelerate", nudging)
    with pytest.raises(RefusedError, match="ratio 1 is bit-equal"):
        require(eager_checks(pipe, call, case.dtype)[0])


def test_a_run_otherwise_than_planned_gets_no_figures() -> None:
    ran = benchmark(dataclasses.replace(QUICK, num_steps=1))
    assert not ran.run([CASES["sd3-medium"].tiny()])
    assert "RASWarning" in ran.results.cases["sd3-medium-tiny"]["refused"]["eager"]


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


def test_errors_are_relative_and_bounds_are_ceilings_or_floors() -> None:
    one = torch.ones(4)
    assert relative_error(one * 1.5, one) == pytest.approx(0.5)
    assert relative_error(one * torch.nan, one) == float("inf")
    assert relative_error(0 * one, 0 * one) == 0.0
    assert relative_error(one, 0 * one) == float("inf")
    assert Check("a", 0.5, 0.5).is_green
    assert not Check("a", float("nan"), 0.5).is_green
    assert not Check("a", 0.4, 0.5, is_floor=True).is_green


def test_compiled_blocks_are_held_against_eager_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = dataclasses.replace(QUICK, modes=("eager", "compiled"), ratios=(0.25,), backend="eager")
    case = CASES["flux-dev"].tiny()
    ran = benchmark(settings)
    assert ran.run([case])
    found = ran.results.cases["flux-dev-tiny"]
    assert [(row["mode"], row["name"]) for row in found["rows"]] == [
        *(("eager", "dense"), ("eager", "ratio 0.25"), ("compiled", "dense"), ("compiled", "ratio 0.25"))
    ]
    assert [check["name"] for check in found["checks"]["compiled"]][:2] == [
        *("compiled dense step equals eager", "compiled region step equals eager")
    ]
    medians = {row["mode"]: row["median"] for row in found["rows"] if row["name"] == "dense"}
    assert found["dense_best"]["median"] == min(medians.values())
    monkeypatch.setattr("ras_dit.bench.checks.COMPILED_TOLERANCE", {"float32": -1.0})
    monkeypatch.setattr("ras_dit.bench.checks.rounding_error", lambda *_: -1.0)
    ran = benchmark(dataclasses.replace(settings, modes=("compiled",)))
    assert not ran.run([case])
    assert ran.results.cases["flux-dev-tiny"]["rows"] == []
    assert "compiled dense step equals eager" in ran.results.cases["flux-dev-tiny"]["refused"]["compiled"]


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


def test_finished_parts_are_not_measured_again(tmp_path: Path) -> None:
    path, case = tmp_path / "bench.json", CASES["sd3-medium"].tiny()
    said: list[str] = []
    benchmark(path=path).run([case])
    first = path.read_text()
    benchmark(path=path, said=said).run([case])
    assert path.read_text() == first
    assert said == ["sd3-medium-tiny: measured already, with the same code and options."]
    benchmark(dataclasses.replace(QUICK, ratios=(0.5,)), path, said).run([case])
    assert said[1:] == ["sd3-medium-tiny: dropped what other code, options or machines measured (eager)."]
    rows = json.loads(path.read_text())["cases"]["sd3-medium-tiny"]["rows"]
    assert [row["name"] for row in rows] == ["dense", "ratio 0.5"]
    benchmark(dataclasses.replace(QUICK, ratios=None, presets=("fast",)), path).run([case])
    rows = json.loads(path.read_text())["cases"]["sd3-medium-tiny"]["rows"]
    assert [row["name"] for row in rows] == ["dense", "fast"]
    newer = Benchmark(QUICK, Results(path, {**MACHINE, "code": "2"}), silent)
    assert not newer.results.is_finished("sd3-medium-tiny", "eager", QUICK.options(case, "eager"))


def test_what_is_measured_stays_when_a_run_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bench.json"

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    settings = dataclasses.replace(QUICK, has_crossover=True, sizes=("64",))
    with monkeypatch.context() as patched:
        patched.setattr("ras_dit.bench.run.size_row", interrupt)
        with pytest.raises(KeyboardInterrupt):
            benchmark(settings, path).run([CASES["sd3-medium"].tiny()])
    case = json.loads(path.read_text())["cases"]["sd3-medium-tiny"]
    assert set(case["finished"]) == {"eager"}
    rows = case["rows"]
    assert benchmark(settings, path).run([CASES["sd3-medium"].tiny()])
    case = json.loads(path.read_text())["cases"]["sd3-medium-tiny"]
    assert case["rows"] == rows
    assert [row["size"] for row in case["crossover"]["eager"]["rows"]] == ["64x64"]


def test_figures_of_other_code_or_options_are_not_compared_with_new_ones() -> None:
    def rows(mode: str, seconds: float) -> dict[str, Any]:
        return {"rows": [{"mode": mode, "name": "dense", "median": seconds}]}

    results = Results(None, {"code": "a"})
    results.keep("mid", "eager", {"steps": 28, "backend": None}, rows("eager", 2.0))
    results.keep("mid", "compiled", {"steps": 28, "backend": "inductor"}, rows("compiled", 1.0))
    case = results.cases["mid"]
    assert [(row["mode"], row["speedup"]) for row in case["rows"]] == [("eager", 0.5), ("compiled", 1.0)]
    results.environment = {"code": "b"}
    results.keep("mid", "eager", {"steps": 28, "backend": None}, rows("eager", 2.0))
    assert [(row["mode"], row["speedup"]) for row in case["rows"]] == [("eager", 1.0)]
    for part, steps in (("crossover eager 64x64", 6), ("crossover compiled 96x96", 6)):
        results.keep("mid", part, {"steps": steps, "backend": None}, {"row": sized_row(part.split()[-1])})
    assert set(case["finished"]) == {"eager", "crossover eager 64x64", "crossover compiled 96x96"}
    results.keep("mid", "compiled", {"steps": 6, "backend": "inductor"}, rows("compiled", 0.2))
    assert set(case["finished"]) == {"compiled", "crossover eager 64x64", "crossover compiled 96x96"}
    other = {"steps": 6, "backend": "aot_eager"}
    results.keep("mid", "crossover compiled 64x64", {**other, "backend": "inductor"}, {"row": sized_row("64x64")})
    assert [row["size"] for row in case["crossover"]["compiled"]["rows"]] == ["64x64", "96x96"]
    results.keep("mid", "crossover compiled 96x96", other, {"row": sized_row("96x96")})
    assert [row["size"] for row in case["crossover"]["compiled"]["rows"]] == ["96x96"]
    results.keep("mid", "crossover eager 96x96", {"steps": 7, "backend": None}, {"row": sized_row("96x96")})
    assert set(case["finished"]) == {"compiled", "crossover eager 96x96"}
    assert [row["size"] for row in case["crossover"]["eager"]["rows"]] == ["96x96"]
    assert set(case["crossover"]) == {"eager"}


def sized_row(size: str, speedup: float = 2.0) -> dict[str, Any]:
    return {"size": size, "num_tokens": int(size.split("x")[0]), "ratios": [{"ratio": 0.25, "speedup": speedup}]}


def dense_row(mode: str, seconds: float = 1.0) -> dict[str, Any]:
    return {"mode": mode, "name": "dense", "median": seconds, "speedup_same_mode": 1.0}


def test_a_refusal_drops_no_older_figures() -> None:
    old, new = {"title": "old", "steps": 28}, {"title": "new", "steps": 8}
    results = Results(None, {"code": "a"})
    for part in ("eager", "compiled"):
        assert results.keep("mid", part, {"steps": 28}, {"about": old, "rows": [dense_row(part)]}) == []
    size = "crossover eager 64x64"
    results.keep("mid", size, {"steps": 28}, {"about": old, "row": sized_row("64x64")})
    results.environment = {"code": "b"}
    for part in ("eager", size):
        assert results.keep("mid", part, {"steps": 8}, {"about": new, "refused": "not green"}) == []
        assert results.is_finished("mid", part, {"steps": 8})
        assert results.why_refused("mid", part, {"steps": 8}) == "not green"
        assert results.why_refused("mid", part, {"steps": 28}) is None
    full = {"about": new, "left_out": "ran out of memory"}
    assert results.keep("mid", "crossover eager 96x96", {"steps": 8}, full) == []
    assert not results.is_finished("mid", "crossover eager 96x96", {"steps": 8})
    case = results.cases["mid"]
    assert [row["mode"] for row in case["rows"]] == ["eager", "compiled"]
    assert [row["size"] for row in case["crossover"]["eager"]["rows"]] == ["64x64"]
    assert (case["title"], case["steps"]) == ("old", 28)
    assert case["crossover"]["eager"]["about"] == old
    today = results.environment
    assert "of different code" in str(speed.why_kept("speed_mid", case, today)), (
        "old figures are not those of this commit"
    )
    assert not {"finished", "tried"} & set(speed.published(case, "cpu"))
    shown = [text for text in tables({"mid": {**case, "crossover": {}}}) if isinstance(text, str)]
    assert shown[0] == "mid, eager: no new figures; those that are shown are of other code or options. not green"
    assert results.keep("mid", "compiled", {"steps": 8}, {"about": new, "rows": [dense_row("compiled")]}) == [
        *("eager", "compiled")
    ]
    assert [row["mode"] for row in case["rows"]] == ["compiled"]
    assert case["title"] == "new"
    assert case["refused"] == dict.fromkeys(("eager", size), "not green"), "of the same code"
    results.keep("mid", "eager", {"steps": 9}, {"rows": [dense_row("eager")]})
    assert case["refused"] == {size: "not green"}


def test_loops_and_sizes_have_facts_of_their_own() -> None:
    results, loops, sizes = Results(None, MACHINE), {"steps": 28}, {"steps": 8}
    size = "crossover eager 64x64"
    results.keep("a", "eager", loops, {"about": loops, "rows": [dense_row("eager")]})
    results.keep("a", size, sizes, {"about": sizes, "row": sized_row("64x64")})
    results.keep("b", size, sizes, {"about": sizes, "row": sized_row("64x64")})
    assert results.cases["b"]["steps"] == 8
    results.keep("b", "eager", loops, {"about": loops, "rows": [dense_row("eager")]})
    for case in results.cases.values():
        assert case["steps"] == 28
        assert case["crossover"]["eager"]["about"] == sizes


def test_a_refusal_of_other_code_in_between_does_not_count() -> None:
    results = Results(None, {"code": "a"})
    results.keep("mid", "eager", {}, {"about": {}, "rows": [dense_row("eager")]})
    results.environment = {"code": "b"}
    results.keep("mid", "eager", {}, {"about": {}, "refused": "a bad edit"})
    results.forget_later_refusal("mid", "eager", {})
    assert results.cases["mid"]["refused"] == {"eager": "a bad edit"}, "these figures are not of this code"
    results.environment = {"code": "a"}
    assert results.is_finished("mid", "eager", {})
    assert "of different code" in str(speed.why_kept("none", results.cases["mid"], results.environment))
    results.forget_later_refusal("mid", "eager", {})
    assert results.cases["mid"]["refused"] == {}
    assert speed.why_kept("none", results.cases["mid"], results.environment) is None


def test_refusals_are_told_again_and_memory_is_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, case = tmp_path / "bench.json", CASES["sd3-medium"].tiny()
    errors: list[Exception] = [torch.OutOfMemoryError("of 139 GiB"), RefusedError("not green")]

    def failing(*_: Any) -> None:
        raise errors.pop(0)

    monkeypatch.setattr("ras_dit.bench.run.eager_checks", lambda *_: ([], Probe()))
    monkeypatch.setattr(Benchmark, "_rows", failing)
    assert not benchmark(path=path).run([case])
    assert not benchmark(path=path).run([case])
    assert not errors, "it was tried twice"
    said: list[str] = []
    assert not benchmark(path=path, said=said).run([case])
    before = "refused before, by the same code with the same options."
    assert said == [f"sd3-medium-tiny, eager: {before} RefusedError: not green"]
    monkeypatch.setattr(Benchmark, "_rows", lambda *_: [dense_row("eager")])
    assert benchmark(path=path).run([CASES["mid"].tiny()]), "other cases are not its own"
    assert benchmark(dataclasses.replace(QUICK, repeats=2), path).run([case])


def test_two_benchmarks_on_one_file_at_once_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "new" / "bench.json"
    with Results.opened(path, MACHINE) as first:
        with (
            pytest.raises(ValueError, match=r"--output: got '.*bench.json', where another benchmark is under way"),
            Results.opened(path, MACHINE),
        ):
            pass
        first.keep("mid", "eager", {}, {"rows": [dense_row("eager")]})
    with Results.opened(path, MACHINE) as second:
        assert second.is_finished("mid", "eager", {})
        second.keep("sd3-medium", "eager", {}, {"rows": [dense_row("eager")]})
    assert set(Results(path, MACHINE).cases) == {"mid", "sd3-medium"}
    with Results.opened(None, MACHINE), Results.opened(None, MACHINE) as in_memory:
        assert not in_memory.is_written


def test_results_of_a_benchmark_that_is_under_way_are_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path / "kept")
    monkeypatch.setattr(speed, "Benchmark", lambda *_: pytest.fail("was run"))
    words = ["speed", "--case", "mid", "--device", "cpu", "--folder", str(tmp_path)]
    monkeypatch.setattr("sys.argv", words)
    with Results.opened(tmp_path / "speed_mid.json", MACHINE) as under_way:
        under_way.keep("mid", "eager", {}, {"rows": [dense_row("eager")]})
        with pytest.raises(SystemExit) as left:
            speed.main()
    assert left.value.code
    assert "another benchmark is under way" in capsys.readouterr().err
    assert not (tmp_path / "kept").exists()
    monkeypatch.setattr("sys.argv", [*words[:1], "--case", "embedded", *words[3:], "--no-loops"])
    with pytest.raises(ValueError, match="--no-loops: got it for embedded"):
        speed.main()


def test_sizes_come_together_one_by_one() -> None:
    results, options = Results(None, {"code": "a"}), {"steps": 6, "backend": None}
    results.keep("mid", "crossover eager 96x96", options, {"row": sized_row("96x96", 1.5)})
    results.keep("mid", "crossover eager 64x64", options, {"row": sized_row("64x64", 0.9)})
    results.keep("mid", "crossover eager 512x512", options, {"left_out": "ran out of memory"})
    found = results.cases["mid"]["crossover"]["eager"]
    assert [row["size"] for row in found["rows"]] == ["64x64", "96x96"]
    assert found["gains_from"] == {"0.25": "96x96"}
    assert found["left_out"] == {"512x512": "ran out of memory"}
    assert results.is_finished("mid", "crossover eager 64x64", options)
    assert not results.is_finished("mid", "crossover eager 512x512", options)
    results.keep("mid", "crossover eager 512x512", options, {"row": sized_row("512x512")})
    results.keep("mid", "crossover eager 64x64", options, {"row": sized_row("64x64", 1.2)})
    assert [row["size"] for row in found["rows"]] == ["64x64", "96x96", "512x512"]
    assert found["gains_from"] == {"0.25": "64x64"}
    assert not found["left_out"]
    results.keep("mid", "crossover eager 64x64", options, {"refused": "not green"})
    assert [row["size"] for row in found["rows"]] == ["96x96", "512x512"]
    assert results.cases["mid"]["refused"] == {"crossover eager 64x64": "not green"}


def test_an_interrupted_crossover_goes_on_with_the_sizes_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def interrupted(case: Case, *rest: Any) -> dict[str, Any]:
        if len(measured) == 1:
            raise KeyboardInterrupt
        measured.append(str(case.size))
        return sized_row(str(case.size))

    monkeypatch.setattr("ras_dit.bench.run.size_row", interrupted)
    monkeypatch.setattr("ras_dit.bench.run.eager_checks", lambda *_: ([], Probe()))
    case, path = CASES["sd3-medium"].tiny(), tmp_path / "results.json"
    settings = dataclasses.replace(QUICK, has_crossover=True, has_loops=False, sizes=("64", "96", "64x64"))
    with pytest.raises(KeyboardInterrupt):
        benchmark(settings, path).run([case])
    assert measured == ["64x64"]
    measured.append("")
    said: list[str] = []
    for sizes in (settings.sizes, ("128",), ("96", "128")):
        assert benchmark(dataclasses.replace(settings, sizes=sizes), path, said).run([case])
    assert measured == ["64x64", "", "96x96", "128x128"]
    rows = json.loads(path.read_text())["cases"]["sd3-medium-tiny"]["crossover"]["eager"]["rows"]
    assert [row["size"] for row in rows] == ["64x64", "96x96", "128x128"]
    assert said == ["sd3-medium-tiny: measured already, with the same code and options."]


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    wrong = (("[", "is no JSON"), ('{"schema": 9}', "something else"), ('{"schema": 2}', "earlier version"))
    for text, message in wrong:
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            Results(tmp_path / "other.json", MACHINE)


def test_the_crossover_is_a_table_of_sizes_and_ratios() -> None:
    settings = dataclasses.replace(QUICK, has_crossover=True, sizes=("128", "64x96"), ratios=(1.0, 0.5, 0.25))
    ran = benchmark(settings)
    assert ran.run([CASES["qwen-image"].tiny()])
    found = ran.results.cases["qwen-image-tiny"]["crossover"]["eager"]
    assert [(row["size"], row["num_tokens"]) for row in found["rows"]] == [("64x96", 24), ("128x128", 64)]
    for row in found["rows"]:
        assert [(one["ratio"], one["num_active"]) for one in row["ratios"]] == [
            *((0.5, row["num_tokens"] // 2), (0.25, row["num_tokens"] // 4))
        ]
        for one in row["ratios"]:
            spent = 5 * one["region_step"] + 3 * one["captured_step"]
            assert one["speedup"] == pytest.approx(8 * row["dense_step"] / spent)
            assert 1 < one["limit"] < 8 / 3
            assert 0 < one["predicted"] < one["limit"]
        half, quarter = row["ratios"]
        assert "profile" not in half
        assert row["profile"]["linear"] > 0 == row["profile"]["added by RAS"]
        assert quarter["profile"]["linear"] > 0 < quarter["profile"]["added by RAS"]
        assert quarter["memory"]["kv_cache_estimate_bytes"] > 0
        assert quarter["memory"]["peak_bytes"] > quarter["memory"]["extra_bytes"] > 0
        assert [check["is_green"] for check in row["checks"]] == [True]
        assert MIN_ROUNDS <= row["num_rounds"] <= MAX_ROUNDS
    assert set(found["gains_from"]) == {"0.5", "0.25"}


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


def test_a_ratio_gains_from_the_size_on_that_all_larger_ones_gain() -> None:
    def row(size: str, tokens: int, *speedups: float) -> dict[str, Any]:
        ratios = [{"ratio": ratio, "speedup": one} for ratio, one in zip((0.5, 0.25), speedups, strict=True)]
        return {"size": size, "num_tokens": tokens, "ratios": ratios}

    rows = [row("512", 1024, 1.01, 1.3), row("256", 256, 1.2, 0.9), row("1024", 4096, 1.3, 1.9)]
    assert gains_from(rows) == {"0.5": "1024", "0.25": "512"}
    assert gains_from(rows[:1]) == {"0.5": None, "0.25": "512"}
    assert gains_from([]) == {}


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


def test_a_case_that_does_not_fit_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["sd3-medium"].tiny()
    monkeypatch.setattr("ras_dit.bench.cases.free_bytes", lambda device: 1000)
    said: list[str] = []
    ran = benchmark(said=said)
    assert ran.run([case])
    assert ran.results.cases == {}
    assert said[0].startswith("sd3-medium-tiny: left out, needs about ")
    monkeypatch.setattr("ras_dit.bench.cases.free_bytes", lambda device: None)
    assert case.why_skipped("mps") is None


def test_the_estimate_is_what_the_run_reports() -> None:
    for name in ONE_PER_ARCHITECTURE.values():
        case, pipe, call = tiny(name)
        with accelerate(pipe, short_config(RASConfig(sample_ratio=0.5))) as handle:
            run_loop(pipe, call)
        assert handle.latest_plan is not None
        assert handle.latest_plan.cost is not None
        assert case.estimate()["kv_cache"] == case.num_rows * handle.latest_plan.cost.kv_cache_bytes, name
        assert case.estimate()["weights"] == weight_bytes(pipe.transformer)


def test_schedules_keep_their_shape_in_runs_of_another_length() -> None:
    schedule = CASES["lumina-next"].schedule
    assert (schedule.num_steps, schedule.config(0.5, 30).refresh_steps) == (30, (12, 22))
    assert schedule.config(0.5, 30).warmup_steps == 4
    assert schedule.config(0.5, 15).warmup_steps == pytest.approx(4 / 30)
    assert not schedule.config(1.0, 30).has_savings


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


def test_sizes_and_cases_by_name() -> None:
    video, picture = Size(480, 832, 81), Size(1024, 1024)
    assert str(video) == "480x832x81"
    assert Size.parse("64", video) == Size(64, 64, 81)
    assert Size.parse("64x96", picture) == Size(64, 96)
    assert Size.parse("64x96x9", picture) == Size(64, 96, 9)
    for text in ("", "0", "axb", "1x2x3x4"):
        with pytest.raises(ValueError, match="--sizes: got"):
            Size.parse(text, picture)
    assert [case.name for case in chosen_cases((), "cpu")] == ["embedded", "embedded-batch", "embedded-256", "mid"]
    assert len(chosen_cases((), "cuda")) == len(CASES)
    with pytest.raises(ValueError, match="--case: got 'sd4'; allowed: embedded"):
        chosen_cases(("sd4",), "cpu")
    with pytest.raises(ValueError, match="embedded: the model in the box"):
        CASES["embedded"].at(picture)


def test_cases_in_another_dtype() -> None:
    (single,) = chosen_cases(("mid",), "cpu", "float32")
    assert (single.name, single.dtype) == ("mid-float32", "float32")
    assert single.title.endswith("fp32")
    assert case_named("mid-float32") == single
    assert next(single.outline().transformer.parameters()).dtype == torch.float32
    assert single.estimate()["kv_cache"] == 2 * CASES["mid"].estimate()["kv_cache"]
    boxed = ["embedded", "embedded-batch", "embedded-256"]
    assert [case.name for case in chosen_cases((), "cpu", "float32")] == [*boxed, "mid-float32"]
    assert [case.name for case in chosen_cases((), "cpu", "float16")] == ["mid-float16"]
    assert chosen_cases(("mid",), "cpu", "bfloat16") == [CASES["mid"]]
    with pytest.raises(ValueError, match="--dtype: got 'int8'; allowed: bfloat16, float16, float32"):
        chosen_cases(("mid",), "cpu", "int8")
    with pytest.raises(ValueError, match="embedded: the model in the box is timed in float32"):
        chosen_cases(("embedded",), "cpu", "bfloat16")


def test_cases_by_the_kernels() -> None:
    case = CASES["sd3-medium"].with_kernels()
    assert case_named("sd3-medium-kernels") == case
    assert case.title.endswith("Triton kernels")
    plain = CASES["sd3-medium"].configs(28)
    for name, config in case.configs(28).items():
        assert config == plain[name].replace(kernels="triton")
    assert case.configs(28, (0.25,)) == {"ratio 0.25": plain["ratio 0.25"].replace(kernels="triton")}


def test_tiny_cases_have_names_of_their_own() -> None:
    tiny_video = CASES["wan-1.3b"].tiny()
    assert tiny_video.name == "wan-1.3b-tiny"
    assert tiny_video.tiny() == tiny_video == case_named("wan-1.3b-tiny")
    (sized,) = chosen_cases(("wan-1.3b-tiny",), "cpu", "bfloat16", "64x96x5")
    assert sized.name == "wan-1.3b-tiny-64x96x5-bfloat16"
    assert case_named(sized.name) == sized
    by_kernels = CASES["sd3-medium"].with_kernels().tiny()
    assert by_kernels == case_named("sd3-medium-kernels-tiny")
    assert by_kernels.has_kernels
    assert CASES["embedded"].tiny() == CASES["embedded"]


def test_cases_without_picture_sizes_are_left_out_unless_they_are_asked_for() -> None:
    cases = [CASES[name] for name in ("embedded", "mid", "sd3-medium-2048")]
    alone = Settings(has_crossover=True, has_loops=False)
    assert alone.with_parts(cases, is_named=False) == [CASES["mid"]]
    assert Settings(has_crossover=True).with_parts(cases, is_named=False) == cases
    assert Settings().with_parts(cases, is_named=True) == cases
    given = Settings(has_crossover=True, sizes=("512",))
    assert given.with_parts(cases[1:], is_named=True) == cases[1:]
    for settings, some, message in (
        (given, cases, "--sizes: got it for embedded, but the model in the box is timed at its own size; take another"),
        (alone, cases[1:], "--no-loops: got it for sd3-medium-2048, but it has no picture sizes of its own; give --s"),
        (Settings(has_crossover=True), cases[2:], "--crossover: got it for sd3-medium-2048"),
    ):
        with pytest.raises(ValueError, match=message):
            settings.with_parts(some, is_named=True)


def test_presets_alone_or_beside_ratios() -> None:
    case = CASES["sd3-medium"]
    assert case.configs(28, presets=("balanced",)) == {"balanced": RASConfig.preset("balanced")}
    assert list(case.configs(28, (0.25,), ("fast", "regions"))) == ["ratio 0.25", "fast", "regions"]
    assert list(case.configs(28)) == [f"ratio {ratio:g}" for ratio in case.ratios] + [
        *(f"ratio 0.125, {name}" for name in case.variants),
        *case.presets,
    ]
    with pytest.raises(ValueError, match=r"preset: got 'blanced'.*balanced"):
        Settings(presets=("blanced",))
    with pytest.raises(ValueError, match="--presets: got them with --no-loops"):
        Settings(presets=("balanced",), has_loops=False)


def test_cases_of_another_size_and_depth() -> None:
    (small,) = chosen_cases(("sd3-medium",), "cuda", size="512x768")
    assert (small.name, small.title) == (
        "sd3-medium-512x768",
        "Stable Diffusion 3 medium's dimensions, 512 x 768, bf16",
    )
    assert small.plan(small.schedule.config(0.5, 28)).num_tokens == 32 * 48
    assert case_named(small.name) == small
    (shallow,) = chosen_cases(("flux-dev",), "cuda", dtype="float32", depth=0.1)
    assert shallow.name == "flux-dev-depth0.1-float32"
    assert case_named(shallow.name) == shallow
    assert shallow.title == "FLUX.1 dev's dimensions, 2 of 19 + 4 of 38 blocks, 1024 x 1024, fp32"
    transformer, whole = shallow.outline().transformer, CASES["flux-dev"].outline().transformer
    assert (len(transformer.transformer_blocks), len(transformer.single_transformer_blocks)) == (2, 4)
    assert 0.05 < transformer.num_parameters() / whole.num_parameters() < 0.15
    ratio = shallow.schedule.config(0.125, 28)
    limit, whole_limit = (case.plan(ratio).speedup_limit for case in (shallow, CASES["flux-dev"]))
    assert limit == pytest.approx(whole_limit, rel=0.05)
    (video,) = chosen_cases(("wan-1.3b",), "cuda", size="256x448x9", depth=0.2)
    assert (video.name, str(video.size)) == ("wan-1.3b-256x448x9-depth0.2", "256x448x9")
    assert case_named(video.name) == video
    assert chosen_cases(("sd3-medium",), "cuda", size="1024", depth=1.0) == [CASES["sd3-medium"]]
    assert "embedded" not in {case.name for case in chosen_cases((), "cuda", depth=0.5)}
    for name in ("sd3-medium-axb", "sd3-medium-depth0", "flux-depth0.1", "embedded-depth0.5", "depth0.1"):
        with pytest.raises(ValueError, match=f"--case: got '{name}'; allowed: embedded"):
            case_named(name)
    with pytest.raises(ValueError, match="--size: got 'big'; allowed: SIDE"):
        chosen_cases(("mid",), "cpu", size="big")
    with pytest.raises(ValueError, match="--depth: got 2; allowed: above 0 and up to 1"):
        chosen_cases(("mid",), "cpu", depth=2.0)
    with pytest.raises(ValueError, match="embedded: the model in the box is timed as a whole"):
        chosen_cases(("embedded",), "cpu", depth=0.5)


def test_rounding_is_told_from_stale_keys_and_from_mistakes_of_compiled_blocks() -> None:
    row = rounding.measured(CASES["sd3-medium"].tiny(), "cpu", is_compiled=True, backend="eager")
    assert (row["num_blocks"], row["num_tokens"]) == (3, 8 * 12)
    errors = row["errors"]
    assert errors["compiled dense"] == errors["compiled region"] == 0.0, "the same operations"
    assert 0 < errors["last place"] < COMPILED_TOLERANCE["float32"] < errors["stale"] / 100
    assert errors["fresh"] < FRESH_TOLERANCE["float32"] < 100 * FRESH_TOLERANCE["float32"] < errors["stale"]
    assert "compiled dense" not in rounding.measured(CASES["lumina-next"].tiny(), "cpu", is_compiled=False)["errors"]


def test_models_that_make_much_of_rounding_may_differ_by_more_once_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    case, pipe, call = tiny("sd3-medium")
    still = eager_probe(pipe, call)
    assert not any(block._forward_hooks for block in blocks_of(pipe))
    assert torch.equal(still.noises[0], probe(pipe, call).noises[0]), "it is the untouched one's"
    allowed = [check.bound for check in compiled_checks(pipe, call, case.dtype, still)[:2]]
    assert allowed == [COMPILED_TOLERANCE["float32"]] * 2
    still.rounding = 0.01
    assert [check.bound for check in compiled_checks(pipe, call, case.dtype, still)[:2]] == [0.01] * 2
    monkeypatch.setattr("ras_dit.bench.checks.rounding_error", lambda *_: 0.01)
    _, fresh, stale = eager_checks(pipe, call, case.dtype)[0]
    assert (fresh.bound, stale.bound) == (FRESH_TOLERANCE["float32"], 0.02), "what was red before stays red"
    monkeypatch.undo()
    pipe.transformer.proj_out.weight.data[0] = float("nan")
    assert eager_probe(pipe, call).rounding == 0.0
    with pytest.raises(RefusedError, match="error inf, allowed at most 1e-05"):
        require(eager_checks(pipe, call, case.dtype)[0][1:])


def test_rounding_is_allowed_for_where_fewer_rows_go_to_other_kernels() -> None:
    case, pipe, call = tiny("sd3-medium")
    still = dataclasses.replace(probe(pipe, call), rounding=0.01)
    assert fresh_check(still, case.dtype).bound == FRESH_TOLERANCE["float32"], "not on a CPU"
    with torch.device("meta"):
        elsewhere = [torch.empty(1)]
    on_gpu = dataclasses.replace(still, noises=elsewhere, active=[None])
    assert fresh_check(on_gpu, case.dtype).bound == 0.01


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


@pytest.mark.parametrize("options", [{}, {"depth": 0.5}, {"dtype": "float16"}, {"size": "512"}])
def test_processes_apart_are_of_cases_that_can_be_so(options: dict[str, Any]) -> None:
    names = ("case", "ratios", "folder", "repeats", "dtype", "size", "depth", "steps", "machine", "presets", "sizes")
    given = SimpleNamespace(**dict.fromkeys(names), device="cpu", kernels=False)
    vars(given).update(options)
    words = [command[1] for command in speed.commands(given, Settings())]  # type: ignore[arg-type]
    assert "mid" in words
    assert ("embedded" in words) == (not options)


def test_processes_apart_measure_and_one_publishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(record, "write", lambda name, result: written.append((name, result)) or Path(name))
    written: list[tuple[str, dict[str, Any]]] = []
    case = dataclasses.replace(CASES["sd3-medium"].tiny(), name="sd3-medium", sizes=("64",), repeats=1)
    monkeypatch.setattr(speed, "chosen_cases", lambda names, *more: (case,))
    words = ["--case", "sd3-medium", "--device", "cpu", "--crossover", "--ratios", "0.25", "--folder", str(tmp_path)]
    ran: list[list[str]] = []

    def run(command: list[str], check: bool) -> Any:
        assert command[:3] == [sys.executable, "-m", "benchmarks.speed"]
        ran.append(command[3:])
        return SimpleNamespace(returncode=called(command[3:]))

    def called(arguments: list[str]) -> Any:
        with monkeypatch.context() as patched:
            patched.setattr(sys, "argv", ["speed", *arguments])
            with pytest.raises(SystemExit) as left:
                speed.main()
        return left.value.code

    monkeypatch.setattr(speed, "subprocess", SimpleNamespace(run=run))
    assert not called([*words, "--apart"])
    assert [command[2:5] for command in ran] == [["--mode", "eager", what] for what in ("--no-crossover", "--no-loops")]
    ((name, result),) = written
    assert name == "speed_sd3-medium"
    assert speed.measured(result) == {"eager", part_of("eager", "64x64")}
    both = Settings(modes=("eager", "compiled"), has_crossover=True)
    given = SimpleNamespace(
        case=["sd3-medium"],
        device="cuda",
        presets="fast",
        sizes=None,
        kernels=False,
        repeats=3,
        **dict.fromkeys(("ratios", "folder", "dtype", "size", "depth", "steps", "machine")),
    )
    commands = [" ".join(command) for command in speed.commands(given, both)]  # type: ignore[arg-type]
    common = "--device cuda --repeats 3 --only-measure"
    assert commands == [
        f"--case sd3-medium --mode {mode} {what}"
        for mode in both.modes
        for what in (f"--no-crossover {common} --presets fast", f"--no-loops {common}")
    ]


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


def test_speedups_are_over_the_best_dense_of_all_modes() -> None:
    case = {
        "rows": [
            {"name": "dense", "mode": "eager", "median": 4.0},
            {"name": "ratio 0.5", "mode": "eager", "median": 2.0, "limit": 2.0},
            {"name": "dense", "mode": "compiled", "median": 3.0},
        ]
    }
    compare(case)
    assert case["dense_best"] == {"mode": "compiled", "median": 3.0}
    assert [row["speedup"] for row in case["rows"]] == [0.75, 1.5, 1.0]
    assert case["rows"][1]["share_of_limit"] == 0.75


def test_operations_are_grouped_by_name() -> None:
    names = ("aten::_scaled_dot_product_flash_attention", "aten::addmm", "aten::index_select", "triton_poi_0", "foo")
    assert [group_of(name) for name in names] == ["attention", "linear", "moving rows", "compiled", "other"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", sorted(ONE_PER_ARCHITECTURE.values()))
def test_a_gpu_gives_figures_in_bfloat16(name: str) -> None:
    settings = dataclasses.replace(QUICK, device="cuda", modes=("eager", "compiled"), ratios=(0.25,))
    ran = benchmark(settings)
    assert ran.run([dataclasses.replace(CASES[name].tiny(), dtype="bfloat16")])
    rows = ran.results.cases[f"{name}-tiny"]["rows"]
    assert {row["mode"] for row in rows} == {"eager", "compiled"}
    if name != "lumina-next":  # whose tiny dense run holds a table at its peak that RAS does without
        assert rows[1]["memory"]["extra_bytes"] > 0
    profiled = [row["mode"] for row in rows if "profile" in row]
    assert profiled == ["compiled"] * 2, "the profiler comes last"


def test_a_model_with_parts_in_float32_keeps_what_it_computes() -> None:
    """Wan's modulation tables, its first parameters, stay in 32 bits; its keys are of 16."""
    case = dataclasses.replace(CASES["wan-1.3b"].tiny(), dtype="bfloat16")
    assert case.dimensions is not None
    transformer, size = case.outline().transformer, case.size
    assert next(transformer.parameters()).dtype == torch.float32
    assert compute_dtype(transformer) == torch.bfloat16
    num_tokens = ((size.num_frames - 1) // 4 + 1) * (size.height // 16) * (size.width // 16)
    width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    keys_and_values = 2 * transformer.config.num_layers * num_tokens * width * 2
    assert case.estimate()["kv_cache"] == case.num_rows * keys_and_values


def test_devices_that_cannot_be_timed_are_refused() -> None:
    with pytest.raises(ValueError, match="--device: got 'mps'; allowed: cpu, cuda"):
        Settings(device="mps")
