"""What the speed benchmark keeps: parts that are finished, refused or of other code, and the tables made of them."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench_twins import MACHINE, QUICK, benchmark, dense_row, sized_row
from benchmarks import record, speed
from ras_dit.bench import CASES, Benchmark, Results, Settings
from ras_dit.bench.cases import Case
from ras_dit.bench.checks import (
    Probe,
    RefusedError,
)
from ras_dit.bench.crossover import MAX_ROUNDS, MIN_ROUNDS
from ras_dit.bench.report import tables
from ras_dit.bench.results import compare, gains_from, part_of
from ras_dit.bench.run import silent


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
            assert one["speedup"] == one["speedup_same_mode"] == pytest.approx(8 * row["dense_step"] / spent)
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


def test_sizes_are_compared_with_the_best_dense_step_of_all_modes() -> None:
    results = Results(None, MACHINE)
    results.keep("mid", "crossover eager 64x64", {}, {"row": sized_row("64x64", 1.2, seconds=3.0)})
    results.keep("mid", "crossover eager 96x96", {}, {"row": sized_row("96x96", 1.6, seconds=5.0)})
    eager = results.cases["mid"]["crossover"]["eager"]
    assert eager["gains_from"] == {"0.25": "64x64"}
    results.keep("mid", "crossover compiled 64x64", {}, {"row": sized_row("64x64", 1.4, seconds=2.0)})
    speedups = [one["speedup"] for row in eager["rows"] for one in row["ratios"]]
    assert speedups == pytest.approx([1.2 * 2 / 3, 1.6]), "no compiled step of that size"
    assert eager["gains_from"] == {"0.25": "96x96"}
    assert results.cases["mid"]["crossover"]["compiled"]["rows"][0]["ratios"][0]["speedup"] == 1.4
    results.keep("mid", "crossover compiled 64x64", {}, {"row": sized_row("64x64", 1.4, seconds=4.0)})
    assert eager["rows"][0]["ratios"][0]["speedup"] == pytest.approx(1.2)


def test_a_ratio_gains_from_the_size_on_that_all_larger_ones_gain() -> None:
    def row(size: str, tokens: int, *speedups: float) -> dict[str, Any]:
        ratios = [{"ratio": ratio, "speedup": one} for ratio, one in zip((0.5, 0.25), speedups, strict=True)]
        return {"size": size, "num_tokens": tokens, "ratios": ratios}

    rows = [row("512", 1024, 1.01, 1.3), row("256", 256, 1.2, 0.9), row("1024", 4096, 1.3, 1.9)]
    assert gains_from(rows) == {"0.5": "1024", "0.25": "512"}
    assert gains_from(rows[:1]) == {"0.5": None, "0.25": "512"}
    assert gains_from([]) == {}


@pytest.mark.parametrize("options", [{}, {"depth": 0.5}, {"dtype": "float16"}, {"size": "512"}])
def test_processes_apart_are_of_cases_that_can_be_so(options: dict[str, Any]) -> None:
    names = ("case", "ratios", "folder", "repeats", "dtype", "size", "depth", "steps", "machine", "presets", "sizes")
    given = SimpleNamespace(**dict.fromkeys(names), device="cpu", kernels=False, variants=False)
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
        variants=False,
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
