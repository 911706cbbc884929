"""`ras-dit tune` on a tiny model: presets, exit codes, going on, mistakes."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ras_dit as library
from ras_dit.arena import Scene
from ras_dit.cli.pipelines import load_pipeline
from ras_dit.cli.scenes import read_scenes
from ras_dit.cli.tune import _scenes
from ras_dit.config import RASConfig
from stand_ins import lpips_file

pytest.importorskip("optuna")
Run = Callable[..., tuple[int, str, str]]
WEIGHTS = "weights.pth"


@pytest.fixture
def words(model: str, tmp_path: Path) -> tuple[object, ...]:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox\na cat\nan owl\na dog\n")
    sizes = ("--steps", 6, "--height", 32, "--width", 32, "--calibration", 2, "--validation", 2)
    return (
        "tune",
        "-m",
        model,
        "--prompts-file",
        prompts,
        *sizes,
        "--trials",
        11,
        "--plan-trials",
        0,
        "-o",
        tmp_path / "tune",
    )


def test_a_preset_that_enable_takes(ras_dit: Run, words: tuple[object, ...], model: str, tmp_path: Path) -> None:
    words = (*words, "--min-psnr", 15, "--min-ssim", 0.1, "--cost", "flops", "--plan-trials", 2)
    code, out, err = ras_dit(*words)
    assert code == 0, err
    assert "psnr of at least 15 and ssim of at least 0.1 on average, at the least flops" in out
    folder = tmp_path / "tune"
    report = json.loads((folder / "tuned.report.json").read_text())
    assert report["status"] in ("met", "fallback")
    assert len(report["trials"]) == 13
    assert [scene["seed"] for scene in json.loads((folder / "tuning.json").read_text())["calibration"]] == [5000, 5001]
    pipe = load_pipeline(model)
    handle = library.enable(pipe, str(folder / "tuned.json"))
    assert handle.config == RASConfig.from_dict(report["config"])
    handle.disable()

    painted = {
        path: path.stat().st_mtime_ns for kind in ("references", "validation") for path in (folder / kind).rglob("*")
    }
    code, again, err = ras_dit(*words)
    assert code == 0, err
    assert again == out
    assert json.loads((folder / "tuned.report.json").read_text()) == report
    assert all(path.stat().st_mtime_ns == before for path, before in painted.items()), "nothing is painted again"
    code, _, err = ras_dit(*words, "--seed", 1)
    assert code == 2
    assert "holds a tuning with another seed" in err


def test_the_arena_judges_by_other_pictures(tmp_path: Path) -> None:
    """A folder that was begun on the same ones goes on with them, with more of them too."""
    file = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "a fox"}, {"prompt": "a cat", "seed": 3}, {"prompt": "an owl"}, {"prompt": "a dog"}]
    file.write_text("\n".join(map(json.dumps, lines)))

    def scenes(prompts: Path | None, validation: int) -> list[Scene]:
        first, second = _scenes(prompts, 2, validation, prompts is None, tmp_path)
        assert (len(first), len(second)) == (2, validation)
        return [*first, *second]

    for prompts, seeds in ((None, [5000, 5001, 5002, 5003]), (file, [5000, 3, 5002, 5003])):
        assert [scene.seed for scene in scenes(prompts, 2)] == seeds
        judged = read_scenes(prompts, 4, is_embedded=prompts is None)
        before = {"calibration": judged[:2], "validation": judged[2:3]}
        claim = {name: [dataclasses.asdict(scene) for scene in each] for name, each in before.items()}
        (tmp_path / "tuning.json").write_text(json.dumps(claim))
        assert scenes(prompts, 2) == judged
        claim = {name: [{**scene, "prompt": "a lion"} for scene in each] for name, each in claim.items()}
        (tmp_path / "tuning.json").write_text(json.dumps(claim))
        assert [scene.seed for scene in scenes(prompts, 2)] == seeds
        (tmp_path / "tuning.json").unlink()


def test_a_target_that_is_missed_says_so(ras_dit: Run, words: tuple[object, ...], tmp_path: Path) -> None:
    code, out, err = ras_dit(*words, "--min-psnr", 60, "--cost", "token_steps", "--name", "high")
    assert code == 3, err
    assert "TARGET MISSED" in out
    assert json.loads((tmp_path / "tune" / "high.report.json").read_text())["status"] == "missed"
    assert not (tmp_path / "tune" / "high.json").exists()


def test_time_is_measured_by_default(ras_dit: Run, words: tuple[object, ...], tmp_path: Path) -> None:
    code, out, err = ras_dit(*words, "--max-cost", 0.99, "--maximise", "ssim", "--without", "kv_forecast,solver_order")
    assert code in (0, 3), err
    assert "the best ssim on average, for at most 99% of the dense time" in out
    report = json.loads((tmp_path / "tune" / "tuned.report.json").read_text())
    measured = [trial for trial in report["trials"] if trial["state"] == "measured"]
    assert all(set(trial["measured"]["costs"]) == {"time", "flops", "token_steps"} for trial in measured)
    assert all(trial["config"]["kv_forecast"] == 0 for trial in report["trials"])


def test_lpips_with_weights_of_ones_own(ras_dit: Run, words: tuple[object, ...], tmp_path: Path) -> None:
    words = (*words, "--max-lpips", 0.5, "--cost", "flops", "--lpips-weights")
    code, out, err = ras_dit(*words, lpips_file(tmp_path / "alex.pth"))
    assert code == 0, err
    assert "lpips of at most 0.5 on average, at the least flops" in out
    report = json.loads((tmp_path / "tune" / "tuned.report.json").read_text())
    assert 0 <= report["candidates"][0]["validation"]["quality"]["lpips"][0] <= 0.5
    code, _, err = ras_dit(*words, lpips_file(tmp_path / "vgg.pth", "vgg"))
    assert code == 2
    assert "holds a tuning with another target" in err, "other weights are another distance"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "neither a floor nor a budget; give floors"),
        (("--min-psnr", 30, "--max-cost", 0.5), "both floors and a budget"),
        (("--min-psnr", 30, "--trials", 2), "--trials: got 2; allowed: at least"),
        (("--min-psnr", 30, "--validation", 9), "--prompts-file: got 4 prompts; allowed: at least 11"),
        (("--min-psnr", 30, "--calibration", 1), "--calibration: got 1; allowed: at least 2"),
        (("--min-psnr", 30, "--name", "tuning"), "--name: got 'tuning'; allowed: any but that of tuning.json"),
        (("--min-psnr", 30, "--name", "../x"), "--name: got '../x'; allowed: letters, digits, _, - and .,"),
        (("--min-psnr", 30, "--cost", "euros"), "--cost: got 'euros'; allowed: time, flops, token_steps"),
        (("--max-cost", 0.5, "--maximise", "beauty"), "--maximise: got 'beauty'; allowed: psnr, ssim, lpips"),
        (("--max-lpips", 0.1), "lpips: got no weights; give --lpips-weights FILE"),
        (("--max-lpips", 0.1, "--lpips-weights", "none.pth"), "--lpips-weights: got 'none.pth', which is no file"),
        (("--min-psnr", 30, "--lpips-weights", "none.pth"), "without --max-lpips or --maximise lpips"),
        (("--max-lpips", -1, "--lpips-weights", WEIGHTS), "lpips: got the target -1; allowed: 0 to inf"),
        (("--min-psnr", 30, "--without", "seed"), "--without: got seed; allowed: step_ratios, importance"),
    ],
)
def test_mistakes(
    ras_dit: Run,
    words: tuple[object, ...],
    flags: tuple[object, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    if WEIGHTS in flags:
        monkeypatch.chdir(tmp_path)
        lpips_file(tmp_path / WEIGHTS)
    code, _, err = ras_dit(*words, *flags)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_without_optuna_it_says_how_to_get_it(
    ras_dit: Run, words: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, _, err = ras_dit(*words, "--min-psnr", 30)
    assert code == 2
    assert "needs Optuna; install it with `pip install '.[tune]'`" in err
