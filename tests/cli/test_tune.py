"""`ras-dit tune` on a tiny model: presets, exit codes, going on, mistakes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ras_dit as library
from ras_dit.cli.pipelines import load_pipeline
from ras_dit.config import RASConfig

pytest.importorskip("optuna")
Run = Callable[..., tuple[int, str, str]]


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
        9,
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
    assert len(report["trials"]) == 11
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


def test_a_target_that_is_missed_says_so(ras_dit: Run, words: tuple[object, ...], tmp_path: Path) -> None:
    code, out, err = ras_dit(*words, "--min-psnr", 60, "--cost", "token_steps", "--name", "high")
    assert code == 1, err
    assert "TARGET MISSED" in out
    assert json.loads((tmp_path / "tune" / "high.report.json").read_text())["status"] == "missed"
    assert not (tmp_path / "tune" / "high.json").exists()


def test_time_is_measured_by_default(ras_dit: Run, words: tuple[object, ...], tmp_path: Path) -> None:
    code, out, err = ras_dit(*words, "--max-cost", 0.99, "--maximise", "ssim", "--without", "kv_forecast,solver_order")
    assert code in (0, 1), err
    assert "the best ssim on average, for at most 99% of the dense time" in out
    report = json.loads((tmp_path / "tune" / "tuned.report.json").read_text())
    measured = [trial for trial in report["trials"] if trial["state"] == "measured"]
    assert all(set(trial["measured"]["costs"]) == {"time", "flops", "token_steps"} for trial in measured)
    assert all(trial["config"]["kv_forecast"] == 0 for trial in report["trials"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "neither a floor nor a budget; give quality floors"),
        (("--min-psnr", 30, "--max-cost", 0.5), "both floors and a budget"),
        (("--min-psnr", 30, "--trials", 2), "--trials: got 2; allowed: at least"),
        (("--min-psnr", 30, "--validation", 9), "--prompts-file: got 4 prompts; allowed: at least 11"),
        (("--min-psnr", 30, "--calibration", 1), "--calibration: got 1; allowed: at least 2"),
        (("--min-psnr", 30, "--cost", "euros"), "--cost: got 'euros'; allowed: time, flops, token_steps"),
        (("--max-cost", 0.5, "--maximise", "beauty"), "--maximise: got 'beauty'; allowed: psnr, ssim"),
        (("--min-psnr", 30, "--without", "seed"), "--without: got seed; allowed: warmup_steps"),
    ],
)
def test_mistakes(ras_dit: Run, words: tuple[object, ...], flags: tuple[object, ...], message: str) -> None:
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
    assert "needs Optuna; install it with `pip install ras-dit[tune]`" in err
