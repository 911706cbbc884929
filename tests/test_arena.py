"""The arena: methods come and go without a trace, painting resumes, and the report says what the pictures say."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch.nn.attention import SDPBackend, sdpa_kernel

import ras_dit
from ras_dit import RASConfig, Trace
from ras_dit.arena import SUITES, AdamsBashforth2Scheduler, Arena, Method, Scene, StepCache, applied, report, suite
from ras_dit.arena.measure import Measured, half_of_dense, is_to_itself, summary, told_apart
from ras_dit.arena.methods import why_unfit
from ras_dit.arena.metrics import PromptJudge, apart, better_by, mean_interval
from ras_dit.arena.report import text
from ras_dit.arena.run import FlopCounter
from ras_dit.embedded import embedded_scenes
from ras_dit.files import alone_in
from ras_dit.plan import build_plan
from ras_dit.versions import versions
from tiny import inputs, run, tiny_pipeline

CALL = {"guidance_scale": 4.0, "max_sequence_length": 1}
SCENES = [Scene(s.prompt, i, s.subject, s.background) for i, s in enumerate(embedded_scenes(3))]


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe = ras_dit.load_embedded()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_adams_bashforth_by_hand_and_exact_for_lines() -> None:
    """Where the noise is linear in sigma, every step after the first is exact on any grid."""
    scheduler = AdamsBashforth2Scheduler(shift=3.0)
    scheduler.set_timesteps(5)
    sigmas, x = scheduler.sigmas.tolist(), torch.zeros(1)
    for index, timestep in enumerate(scheduler.timesteps):
        before = x.clone()
        x = scheduler.step(torch.tensor([2 * sigmas[index] + 1]), timestep, x, return_dict=False)[0]
        exact = sigmas[index + 1] ** 2 - sigmas[index] ** 2 + sigmas[index + 1] - sigmas[index]
        if index:
            assert float(x - before) == pytest.approx(exact, abs=1e-5)
    scheduler.set_timesteps(5)
    assert scheduler._last is None, "a run begins anew"


@contextmanager
def every_second(pipe: Any) -> Iterator[None]:
    """A method of somebody's own: every second step takes the noise of the one before."""
    forward, outputs = pipe.transformer.forward, list[Any]()

    def lazily(*args: Any, **options: Any) -> Any:
        outputs.append(outputs[-1] if len(outputs) % 2 else forward(*args, **options))
        return outputs[-1]

    pipe.transformer.forward = lazily
    try:
        yield
    finally:
        del pipe.transformer.forward


DB_OPTIONS = {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.9, "max_warmup_steps": 1}
METHODS = [
    Method("AB2", "dense", 6, "ab2"),
    Method("Heun", "dense", 4, "heun"),
    Method("UniPC", "dense", 6, "unipc"),
    Method("DPM", "dense", 6, "dpm++"),
    Method("RAS", "ras", 6, config=RASConfig(sample_ratio=0.25, warmup_steps=2)),
    Method("seer", "cache", 8, cache=StepCache("taylorseer", {"cache_interval": 2})),
    Method("AB2 visiting", "dense", 8, "ab2", visited=(0, 2, 5)),
    Method("every second step", "cache", 8, apply=every_second),
    Method("broadcast", "cache", 8, cache=StepCache("pyramid", {"spatial_attention_block_skip_range": 2})),
    Method("mag", "cache", 8, cache=StepCache("magcache", {"threshold": 0.5, "retention_ratio": 0.1})),
    Method(
        "db",
        "cache",
        8,
        cache=StepCache(
            "dbcache",
            {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.9, "max_warmup_steps": 1, "taylorseer_order": 1},
        ),
    ),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_method_changes_the_picture_and_leaves_nothing_behind(pipe: Any, method: Method) -> None:
    if method.cache is not None and method.cache.kind == "dbcache":
        pytest.importorskip("cache_dit")

    def paint() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        call = {**CALL, "generator": generator, "output_type": "latent", "num_inference_steps": method.steps}
        return pipe(prompt="a fox", **call).images

    scheduler, dense = pipe.scheduler, paint()
    with applied(pipe, method, calibrate=paint):
        fast = paint()
    assert fast.isfinite().all()
    assert not torch.equal(fast, dense)
    assert pipe.scheduler is scheduler
    assert torch.equal(paint(), dense)
    with pytest.raises(KeyError), applied(pipe, method, calibrate=paint):
        raise KeyError
    assert torch.equal(paint(), dense)


def test_ras_as_a_method_of_ones_own_is_followed(pipe: Any) -> None:
    """With a score of one's own, which no config holds: its trace and notes are kept as those of other RAS runs."""
    method = Method("oldest", "ras", 6, apply=lambda pipe: ras_dit.enable(pipe, METHODS[4].config, score=oldest))
    with applied(pipe, method) as handle:
        assert handle is ras_dit.handle_of(pipe)
        pipe(prompt="a fox", **{**CALL, "output_type": "latent", "num_inference_steps": 6})
    assert handle is not None
    assert handle.trace.token_steps == pytest.approx(2 + 4 * 0.25)
    assert ras_dit.handle_of(pipe) is None


def oldest(given: ras_dit.ScoreInputs) -> torch.Tensor:
    return given.age


def test_methods_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="solver: got 'rk4'; allowed: euler, ab2"):
        Method("a", "dense", solver="rk4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"visited: got .* allowed: 0, \.\.\. with"):
        Method("a", "dense", visited=(0, 3))
    with pytest.raises(ValueError, match="give one of them"):
        Method("a", "ras", config=RASConfig(), cache=StepCache("taylorseer"))
    with pytest.raises(ValueError, match=r"apply=.* allowed: a function, without config and cache"):
        Method("a", "ras", config=RASConfig(), apply=every_second)
    with pytest.raises(ValueError, match="a: got the group 'mine'; allowed: ras, cache, dense"):
        Method("a", "mine", apply=every_second)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="apply='teacache'; allowed: a function"):
        Method("a", "cache", apply="teacache")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cache: got 'teacache'"):
        StepCache("teacache")  # type: ignore[arg-type]
    pipe = tiny_pipeline()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    with (
        pytest.raises(ValueError, match="only 'euler' and 'ab2', even or not, are comparable"),
        applied(pipe, Method("a", "dense", 4, "unipc")),
    ):
        pass


def test_flops_are_counted_where_they_are_spent() -> None:
    pipe = tiny_pipeline()
    with FlopCounter() as few:
        run(pipe, **inputs(num_inference_steps=2))
    with FlopCounter() as many:
        run(pipe, **inputs(num_inference_steps=6))
    assert many.total == pytest.approx(3 * few.total)
    assert few.total > 0


def test_attention_counts_alike_whichever_kernel_computes_it() -> None:
    query, key = torch.randn(2, 4, 48, 32), torch.randn(2, 4, 80, 32)
    by_hand = 2 * (2 * 2 * 4 * 48 * 80 * 32)  # scores and values, a multiplication and an addition each
    for kernel in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
        with sdpa_kernel(kernel), FlopCounter() as counter:
            torch.nn.functional.scaled_dot_product_attention(query, key, key)
        assert counter.total == by_hand, kernel


def test_an_arena_paints_once_goes_on_and_reports(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = [
        Method("AB2, 3 steps", "dense", 3, "ab2"),
        Method("Euler, 3 steps", "dense", 3),
        Method("RAS", "ras", 6, config=RASConfig(sample_ratio=0.25, warmup_steps=2)),
        Method("does not fit", "cache", 6, cache=StepCache("first_block", {"threshold": 0.1})),
    ]

    def arena(**changes: Any) -> Arena:
        options = {"batch": 2, "steps": 6, "converged_steps": 9}
        return Arena(tmp_path, SCENES, methods, CALL, **{**options, **changes})

    calls: list[int] = []
    first = arena()
    with monkeypatch.context() as patch:
        paint = Arena._paint

        def interrupted(self: Arena, *args: Any) -> Any:
            if len(calls) == 3:
                raise KeyboardInterrupt
            calls.append(1)
            return paint(self, *args)

        patch.setattr(Arena, "_paint", interrupted)
        with pytest.raises(KeyboardInterrupt):
            first.run(pipe)
    painted = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    assert painted
    ticks: list[int] = []
    arena().run(pipe, lambda: ticks.append(1))
    assert len(ticks) == first.num_calls == 12
    assert all(path.stat().st_mtime_ns == before for path, before in painted.items()), "not painted again"

    result = report(arena())
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == ["dense", "converged", "AB2, 3 steps", "Euler, 3 steps", "RAS"]
    assert "does not fit" in result["failures"]
    assert rows["dense"]["flops_share"] == 1.0
    assert rows["AB2, 3 steps"]["flops_share"] == pytest.approx(0.5, abs=1e-3)
    assert rows["RAS"]["token_steps"] == pytest.approx(2 + 4 * 0.25)
    assert 0.5 < rows["RAS"]["flops_share"] < 1
    assert len(rows["RAS"]["per_picture"]["psnr_converged"]) == 3
    assert "psnr_dense" not in rows["dense"]["metrics"]
    mean, low, high = rows["RAS"]["metrics"]["psnr_dense"]
    assert low <= mean <= high
    assert all(low <= mean <= high for row in rows.values() for mean, low, high in row["metrics"].values())
    assert {"certainty", "subject"} <= set(rows["dense"]["metrics"])
    assert result["left_out"] == {
        "frechet": "3 pictures; a Frechet distance needs 100.",
        "kernel": "3 pictures; a kernel distance needs 4.",
    }
    found = result["sensitivity"]
    assert (found["first"], found["second"]) == ("dense", "Euler, 3 steps")
    assert set(found["metrics"]) == set(rows["RAS"]["metrics"])
    assert found["metrics"]["psnr_dense"]["first"] == 60, "the dense run is equal to itself"
    for metric in ("psnr_dense", "ssim_dense", "psnr_converged", "ssim_converged"):
        assert found["metrics"][metric]["is_told_apart"], "three steps of Euler are not six"
        assert found["metrics"][metric]["difference"][1] > 0
    assert found["metrics"]["features_dense"]["first"] == 0
    assert found["metrics"]["features_dense"]["is_told_apart"]
    blind = [name for name, one in found["metrics"].items() if not one["is_told_apart"]]
    assert "subject" in blind
    assert f"Do not rank methods by {', '.join(blind)}:" in text(result)
    titles = text(result).splitlines()[0].split(" | ")
    assert "psnr_dense" in titles
    assert titles[-1].startswith("check: subject"), "what cannot rank stands last"
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(result))
    assert (tmp_path / "table.md").read_text() == text(result)
    assert (tmp_path / "pareto.png").stat().st_size > 10_000

    with pytest.raises(ValueError, match="other prompts, seeds or call arguments"):
        arena(batch=3)
    methods[0] = Method("AB2, 3 steps", "dense", 4, "ab2")
    with pytest.raises(ValueError, match="painted with other options"):
        arena().run(pipe)
    methods[0] = Method("ras", "ras")
    with pytest.raises(ValueError, match="got ras twice"):
        arena()


def test_a_method_of_ones_own_takes_part(pipe: Any, tmp_path: Path) -> None:
    own, dense = Method("own", "cache", 6, apply=every_second), Method("dense", "dense", 6)
    assert own.token_steps is None
    assert own.to_dict() == {**dense.to_dict(), "name": "own", "group": "cache", "apply": "every_second"}
    assert "apply" not in dense.to_dict(), "folders that were begun before go on"

    def arena() -> Arena:
        return Arena(tmp_path, SCENES, [own], CALL, 2, 6, 6)

    arena().run(pipe)
    result = report(arena(), has_plot=False)
    row = result["rows"][2]
    assert row["name"] == "own"
    assert row["flops_share"] == pytest.approx(0.5, abs=1e-3)
    assert row["token_steps"] == pytest.approx(3, abs=1e-2)
    assert row["flops_pictures"] == 2
    assert json.loads((tmp_path / "results.json").read_text())["rows"][2]["method"]["apply"] == "every_second"

    @contextmanager
    def broken(pipe: Any) -> Iterator[None]:
        raise AttributeError("a slip in it")
        yield

    own = Method("broken", "cache", 6, apply=broken)
    with pytest.raises(AttributeError, match="a slip in it"):
        arena().run(pipe)


def test_traces_are_kept_where_they_are_asked_for(pipe: Any, tmp_path: Path) -> None:
    ours = Method("ours", "ras", 4, config=RASConfig(sample_ratio=0.25, warmup_steps=2))

    def arena(*methods: Method, **options: bool) -> Arena:
        return Arena(tmp_path, SCENES, methods, CALL, 2, 4, 4, **options)

    arena(ours).run(pipe)
    assert not list(tmp_path.rglob("trace-*"))
    before = (tmp_path / "arena.json").read_bytes(), (tmp_path / "ours" / "run-00000.json").read_bytes()
    (tmp_path / "ours" / "run-00002.json").unlink()
    later = Method("later", "ras", 4, config=RASConfig(sample_ratio=0.5, warmup_steps=2))
    contest = arena(ours, later, saves_traces=True)
    contest.run(pipe)
    assert before == ((tmp_path / "arena.json").read_bytes(), (tmp_path / "ours" / "run-00000.json").read_bytes())
    written = [contest.trace_path(ours, 2), contest.trace_path(later, 0), contest.trace_path(later, 2)]
    assert sorted(tmp_path.rglob("trace-*")) == sorted(written), "not of dense runs, nor of what was painted before"
    masks = Trace.load(written[1]).masks()
    assert masks.shape[:2] == (4, 2)
    assert masks[:2].all()
    assert masks[2:].flatten(2).float().mean(dim=2).unique().tolist() == [0.5]
    for method in (ours, later):
        last = contest.runs(method)[1]
        assert Trace.load(contest.trace_path(method, 2)).token_steps == pytest.approx(last["token_steps"])
    report(arena(ours, later), has_plot=False)


def test_pictures_are_as_far_apart_as_their_features() -> None:
    others = torch.tensor([[3.0, 4.0], [0.0, 15.0]])  # norms 5 and 15: 10 in the mean
    assert apart(others, others) == [0, 0]
    assert apart(others + torch.tensor([[6.0, 8.0], [0.0, 0.0]]), others) == pytest.approx([1, 0])


def test_few_pictures_have_no_frechet_distance_and_many_have_a_corrected_one() -> None:
    """Held-out renders against themselves: the usual value falls with the number, the corrected one needs 352."""
    judge = PromptJudge()
    assert judge.renders is not None
    features = judge.renders[torch.randperm(1000, generator=torch.Generator().manual_seed(0))]
    assert set(judge.distances(features[:99])) == {"kernel"}
    found = [summary(Measured({}, judge.distances(features[:count])), "x") for count in (100, 400)]
    assert [set(each) for each in found] == [{"kernel", "frechet"}, {"kernel", "frechet", "frechet_corrected"}]
    assert found[0]["frechet"][0] > found[1]["frechet"][0] > found[1]["frechet_corrected"][0]
    estimate, low, high = found[1]["frechet_corrected"]
    assert low < estimate < high


def test_a_verdict_is_paired() -> None:
    noise = [10.0, -30.0, 55.0, 2.0]
    first, second = Measured({"psnr": [value + 1 for value in noise]}), Measured({"psnr": noise})
    verdict = told_apart(first, second)["psnr"]
    assert verdict["is_told_apart"]
    assert verdict["difference"] == pytest.approx([1, 1, 1])
    assert not told_apart(first, first)["psnr"]["is_told_apart"]
    assert is_to_itself("fid_dense_corrected", "dense")
    assert not is_to_itself("psnr_converged", "dense")


def test_suites_have_distinct_names_and_unknown_ones_are_refused() -> None:
    methods = suite("all")
    assert len({method.slug for method in methods}) == len(methods)
    assert suite("dense, presets") == [*SUITES["dense"](28), *SUITES["presets"](28)]
    with pytest.raises(ValueError, match="suite: got 'fast'; allowed: all, dense"):
        suite("fast")


@pytest.mark.parametrize("num_steps", [1, 4, 10, 15, 50])
def test_suites_fit_runs_of_other_lengths(num_steps: int, tmp_path: Path) -> None:
    methods = suite("all", num_steps)
    assert len({method.slug for method in methods}) == len(methods)
    assert {method.steps for method in methods if method.group not in ("dense", "reference")} == {num_steps}
    for method in methods:
        assert method.steps <= num_steps
        assert all(index < num_steps for index in method.visited)
        if method.config is not None:
            assert build_plan(method.config, method.steps, 256).token_steps <= method.steps
    contest = Arena(tmp_path, SCENES, methods, CALL, steps=num_steps)
    half = half_of_dense(contest)
    assert (half is not None) == (num_steps > 1), "the check of the metrics needs it"


def test_intervals_hold_the_mean_and_differences_are_paired() -> None:
    mean, low, high = mean_interval([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5
    assert 1.0 <= low < mean < high <= 4.0
    noise = [10.0, -30.0, 55.0, 2.0]
    assert better_by([v + 1 for v in noise], noise) == pytest.approx((1.0, 1.0, 1.0))


@pytest.mark.parametrize("solver", ["euler-even", "ab2-even", "ab2"])
def test_even_grids_and_grids_of_the_pipelines_own(solver: Any) -> None:
    pipe = tiny_pipeline()
    with applied(pipe, Method("a", "dense", 4, solver)):
        pipe.scheduler.set_timesteps(4)
        asked = [1.0, 0.75, 0.5, 0.25]
        even = [3 * sigma / (1 + 2 * sigma) for sigma in asked]  # shift 3
        found = pipe.scheduler.sigmas[:-1].tolist()
        assert (found == pytest.approx(even, abs=1e-6)) == solver.endswith("even")
        pipe.scheduler.set_timesteps(sigmas=asked)  # pipelines that bring their own, such as FLUX's
        assert pipe.scheduler.sigmas[:-1].tolist() == pytest.approx(even, abs=1e-6)
        assert "sigmas" in inspect.signature(pipe.scheduler.set_timesteps).parameters


def test_token_steps_are_of_all_pictures_and_flops_of_those_of_the_first_call(tmp_path: Path, pipe: Any) -> None:
    config = RASConfig(step_ratios=(1, 1, 0.3, 0.3, 0.3, 0.3), refresh_tolerance=0.15)
    methods = [Method("tolerance", "ras", 6, config=config)]
    arena = Arena(tmp_path, SCENES, methods, CALL, 2, 6, 6)
    arena.run(pipe)
    first, second = arena.runs(arena.methods[2])
    assert [first["count"], second["count"]] == [2, 1]
    dense = arena.runs(arena.methods[0])[0]
    result = report(arena, has_plot=False)
    rows = {row["name"]: row for row in result["rows"]}
    assert [row["flops_pictures"] for row in result["rows"]] == [3, 3, 2], "what the plan says holds for every picture"
    assert "are of the first 2 of 3 pictures alone." in text(result)
    assert "are of the first" not in text({**result, "rows": result["rows"][:2]})
    mean = (2 * first["token_steps"] + second["token_steps"]) / 3
    assert rows["tolerance"]["token_steps"] == pytest.approx(mean, abs=1e-3)
    assert rows["tolerance"]["flops_share"] == pytest.approx(first["flops"] / dense["flops"], abs=1e-4)
    # a step of this model costs more than its share of tokens, never less
    assert first["flops"] / dense["flops"] >= first["token_steps"] / 6
    assert rows["tolerance"]["time_share"] == pytest.approx(first["seconds"] / dense["seconds"], abs=1e-3)


def test_a_folder_is_of_one_model_and_times_are_of_one_process(tmp_path: Path, pipe: Any) -> None:
    def arena(*methods: Method) -> Arena:
        return Arena(tmp_path, SCENES[:1], methods, CALL, 1, 4, 4)

    arena().run(pipe)
    later = Method("3 steps", "dense", 3)
    arena(later).run(pipe)
    (dense,), (run,) = (arena(later).runs(method) for method in arena(later).methods[::2])
    assert dense["dense_seconds"] == dense["seconds"]
    assert run["dense_seconds"] not in (dense["seconds"], run["seconds"])
    row = report(arena(later), has_plot=False)["rows"][2]
    assert row["time_share"] == pytest.approx(run["seconds"] / run["dense_seconds"], abs=1e-3)
    weight = next(pipe.transformer.parameters())
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.mul_(0.95)
        with pytest.raises(ValueError, match="pictures of another model: transformer: got"):
            arena(later).run(pipe)
    finally:
        with torch.no_grad():
            weight.copy_(before)
    arena(later).run(pipe)


def test_rows_of_different_versions_say_so(tmp_path: Path, pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def arena(*methods: Method) -> Arena:
        return Arena(tmp_path, SCENES[:1], methods, CALL, 1, 4, 4)

    later = Method("3 steps", "dense", 3)
    arena().run(pipe)
    result = report(arena(), has_plot=False)
    (made,) = result["rows"][0]["painted_with"]
    assert made["versions"] == versions()
    assert "thread" in made["machine"] or pipe.device.type == "cuda"
    assert result["pipeline"]["dtype"] == str(pipe.transformer.dtype)
    assert result["notes"] == []
    monkeypatch.setattr("ras_dit.arena.origins.versions", lambda: {"ras_dit": "9", "torch": "8"})
    arena(later).run(pipe)
    result = report(arena(later), has_plot=False)
    (note,) = result["notes"]
    assert note.startswith("Rows were painted with different versions. dense, converged: ras-dit ")
    assert f", torch {versions()['torch']}; " in note
    assert note.endswith("; 3 steps: ras-dit 9, torch 8.")
    assert f"* Note: {note}\n" in text(result)
    assert json.loads((tmp_path / "results.json").read_text())["notes"] == [note]

    for path in tmp_path.glob("*/run-*.json"):  # as earlier versions left them
        record = json.loads(path.read_text())
        del record["versions"], record["machine"]
        path.write_text(json.dumps(record))
    result = report(arena(later), has_plot=False)
    assert result["rows"][0]["painted_with"] == [{"versions": None, "machine": None}]
    assert result["notes"] == []
    arena(later, Method("2 steps", "dense", 2)).run(pipe)
    (note,) = report(arena(later, Method("2 steps", "dense", 2)), has_plot=False)["notes"]
    assert "dense, converged, 3 steps: versions that were not kept; 2 steps: ras-dit 9" in note
    rows = [{key: row[key] for key in row if key not in ("flops_pictures", "painted_with")} for row in result["rows"]]
    older = {key: result[key] for key in result if key not in ("notes", "pipeline")} | {"rows": rows}
    assert text(older) == text(result)


OUT_OF_MEMORY = (torch.OutOfMemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"))


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_memory_that_runs_out_is_no_fault_of_a_method(
    tmp_path: Path, pipe: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    seer = Method("seer", "cache", 4, cache=StepCache("taylorseer", {"cache_interval": 2}))
    arena = Arena(tmp_path, SCENES[:1], [seer], CALL, 1, 4, 4)
    paint = Arena._paint

    def without_memory(self: Arena, pipe: Any, method: Method, indices: Any) -> Any:
        if method is seer:
            raise error
        return paint(self, pipe, method, indices)

    with monkeypatch.context() as patched:
        patched.setattr(Arena, "_paint", without_memory)
        with pytest.raises(type(error)):
            arena.run(pipe)
    assert arena.failure(seer) is None
    arena.run(pipe)
    assert arena.picture_path(seer, 0).is_file()


def test_what_a_model_cannot_run_is_listed_and_the_rest_is_painted(
    tmp_path: Path, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Schedulers by others that do not take what a pipeline passes (here: noise levels), options it does not have."""
    heun, unfit = Method("Heun", "dense", 4, "heun"), "text_reuse: got a model that cannot"
    reusing = Method("reusing", "ras", 4, config=RASConfig(sample_ratio=0.5, warmup_steps=1, text_reuse=True))
    ours = Method("ours", "ras", 4, config=RASConfig(sample_ratio=0.5, warmup_steps=1))

    def check(_: Any, config: RASConfig) -> None:
        if config.text_reuse:
            raise ValueError(unfit)

    monkeypatch.setattr("ras_dit.arena.run.check_reuse", check)
    call = {**CALL, "sigmas": [1.0, 0.75, 0.5, 0.25]}
    arena = Arena(tmp_path, SCENES[:1], [heun, reusing, ours], call, 1, 4, 4, "euler")
    arena.run(pipe)
    assert "sigmas" in str(arena.failure(heun))
    assert arena.failure(reusing) == unfit
    assert arena.picture_path(ours, 0).is_file()
    assert set(report(arena, has_plot=False)["failures"]) == {"Heun", "reusing"}


def test_what_a_machine_lacks_is_listed_and_the_rest_is_painted(
    tmp_path: Path, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known before the first picture: cache-dit, and Triton for a config of the user's own."""
    rival = Method("DBCache", "cache", 4, cache=StepCache("dbcache", {"residual_diff_threshold": 0.1}))
    ours = Method("ours", "ras", 4, config=RASConfig(sample_ratio=0.5, warmup_steps=1))
    triton = Method("triton", "ras", 4, config=RASConfig(sample_ratio=0.5, warmup_steps=1, kernels="triton"))
    monkeypatch.setitem(sys.modules, "cache_dit", None)
    monkeypatch.setattr("ras_dit.kernels.importlib.util.find_spec", lambda _: None)
    arena = Arena(tmp_path, SCENES[:1], [rival, triton, ours], CALL, 1, 4, 4)
    with monkeypatch.context() as patched:
        patched.setattr(Arena, "_paint", lambda *_: pytest.fail("was painted"))
        with pytest.raises(pytest.fail.Exception):
            arena.run(pipe)
    assert "dbcache: needs cache-dit: `pip install '.[arena]'`" in str(arena.failure(rival))
    assert "Triton is not installed" in str(arena.failure(triton))
    arena.run(pipe)
    result = report(arena, has_plot=False)
    assert set(result["failures"]) == {"DBCache", "triton"}
    assert [row["name"] for row in result["rows"]] == ["dense", "converged", "ours"]
    for path in (tmp_path / "ours").iterdir():  # as if it had been painted where there is Triton
        if path.name != "method.json":
            (tmp_path / "triton" / path.name).write_bytes(path.read_bytes())
    arena.run(pipe)
    result = report(arena, has_plot=False)
    assert set(result["failures"]) == {"DBCache"}, "what is painted stays"
    assert "triton" in [row["name"] for row in result["rows"]]
    assert "Do not run here" in text(result)


def test_solvers_of_other_grids_are_not_compared() -> None:
    for option in ("use_dynamic_shifting", "invert_sigmas"):
        scheduler = FlowMatchEulerDiscreteScheduler(**{option: True})
        assert [bool(why_unfit(scheduler, solver)) for solver in ("euler", "ab2", "heun", "unipc", "dpm++")] == [
            *(False, False),
            *(True, True, True),
        ]


def test_two_arenas_in_a_folder_at_once_are_refused(tmp_path: Path, pipe: Any) -> None:
    arena = Arena(tmp_path, SCENES[:1], [], CALL, 1, 2, 2)
    with alone_in(tmp_path, "arena"), pytest.raises(ValueError, match="another arena is under way there"):
        arena.run(pipe)
    arena.run(pipe)
