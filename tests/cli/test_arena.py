"""`ras-dit arena` on a tiny model: what it writes, and that it goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ras_dit import RASConfig, Trace
from ras_dit.arena import SUITES, Method
from stand_ins import clip_folder, inception_file, lpips_file

Run = Callable[..., tuple[int, str, str]]


def test_an_arena_of_any_model(ras_dit: Run, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox\na cat\n")
    words = ("arena", "--model", model, "--prompts-file", str(prompts), "--suites", "presets", "--steps", "8")
    words = (*words, "--converged-steps", "9", "--height", "32", "--width", "32", "-o", str(tmp_path / "arena"))
    code, out, err = ras_dit(*words, "--traces")
    assert code == 0, err
    assert "preset balanced" in out
    traces = list((tmp_path / "arena").glob("*/trace-*.json"))
    assert [Trace.load(path).masks().shape[:2] for path in traces] == [(8, 2)] * len(SUITES["presets"](8))
    result = json.loads((tmp_path / "arena" / "results.json").read_text())
    assert [row["name"] for row in result["rows"]][:2] == ["dense", "converged"]
    num_methods = 2 + len(SUITES["presets"](8))
    assert len(result["rows"]) == num_methods
    assert "subject" not in result["rows"][0]["metrics"], "only the embedded model's prompts have known subjects"
    painted = {path: path.stat().st_mtime_ns for path in (tmp_path / "arena").rglob("0*.png")}
    assert len(painted) == 2 * num_methods
    code, _, err = ras_dit(*words)
    assert code == 0, err
    assert all(path.stat().st_mtime_ns == before for path, before in painted.items())
    (tmp_path / "arena" / "pareto.png").unlink(missing_ok=True)
    monkeypatch.setattr("ras_dit.cli.plots.has_matplotlib", lambda: False)
    code, out, err = ras_dit(*words)
    assert code == 0, err
    assert "Wrote results.json and table.md in" in out
    assert "No plot: it needs matplotlib" in out
    assert not (tmp_path / "arena" / "pareto.png").exists()
    code, _, err = ras_dit(*words, "--width", 64)
    assert code == 2
    assert "(or frames per second): call.width: got 64, there 32. Give the same ones, another --output, or" in err
    code, _, err = ras_dit(*words[:-2], "--dtype", "bfloat16", *words[-2:])
    assert code == 2
    assert 'another model: dtype: got "torch.bfloat16", there "torch.float32"; transformer: got "' in err
    prompts.write_text("a dog\n")
    code, _, err = ras_dit(*words)
    assert code == 2
    assert "holds an arena of other prompts" in err
    assert "scenes: got 1, there 2." in err


def test_metrics_of_other_networks(ras_dit: Run, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left out with a line each without weights; an arena that is painted gets them later."""
    pytest.importorskip("torchmetrics")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setitem(SUITES, "dense", lambda num_steps: [Method("Euler, 6 steps", "dense", 6)])
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox\na cat\na dog\nan owl\n")
    words = ("arena", "--model", model, "--prompts-file", str(prompts), "--suites", "dense", "--steps", "12")
    words = (*words, "--converged-steps", "13", "--height", "32", "--width", "32", "-o", str(tmp_path / "arena"))
    code, out, err = ras_dit(*words)
    assert code == 0, err
    assert "* lpips: no weights; give --lpips-weights FILE" in out
    assert "* clip: no model; give --clip-model FOLDER" in out
    for index, color in enumerate(("red", "blue", "green")):
        (tmp_path / "real").mkdir(exist_ok=True)
        Image.new("RGB", (40, 32), color).save(tmp_path / "real" / f"{index}.png")
    words = (*words, "--lpips-weights", lpips_file(tmp_path / "alex.pth"), "--clip-model", clip_folder(tmp_path / "c"))
    words = (*words, "--inception-weights", inception_file(tmp_path / "inception.pth"), "--real", tmp_path / "real")
    code, out, err = ras_dit(*words)
    assert code == 0, err
    result = json.loads((tmp_path / "arena" / "results.json").read_text())
    assert set(result["left_out"]) == {"fid", "sfid"}, "for want of pictures"
    row = next(row for row in result["rows"] if row["name"] == "Euler, 6 steps")
    assert {"lpips_dense", "lpips_converged", "clip", "kid_real"} <= set(row["metrics"])
    assert "| kid_real |" in out
    apart = result["sensitivity"]["metrics"]
    assert apart["lpips_dense"]["first"] == 0
    assert apart["lpips_dense"]["is_told_apart"]
    assert {path.name for path in (tmp_path / "arena" / "euler-6-steps").glob("*.safetensors")} == {
        "lpips-dense.safetensors",
        "lpips-converged.safetensors",
        "clip.safetensors",
        "inception.safetensors",
    }
    code, _, err = ras_dit(*words[:-1], tmp_path / "nowhere")
    assert code == 2
    assert "--real: got" in err


def test_chosen_methods_and_configs_of_ones_own(ras_dit: Run, model: str, tmp_path: Path) -> None:
    prompts, tuned = tmp_path / "prompts.txt", tmp_path / "tuned.json"
    prompts.write_text("a fox\n")
    RASConfig(sample_ratio=0.5, warmup_steps=2).save(tuned)
    chosen = ("--suites", "presets", "--only", "preset fast", "--config", tuned)
    words = ("arena", "--model", model, "--prompts-file", prompts, "--steps", 8, "--converged-steps", 9)
    size = ("--height", 32, "--width", 32, "-o", tmp_path / "arena")
    code, out, err = ras_dit(*words, *chosen, "--list")
    assert (code, out) == (0, "preset fast\nconfig tuned\n"), err
    code, out, err = ras_dit(*words[:-4], "--suites", "dense,goals,caches", "--budget", 6, "--list")
    assert code == 0, err
    assert {"Euler, 6 steps", "regions in every step, T 6, order 1", "MagCache 0.06"} <= set(out.splitlines())
    assert not {"Euler, 7 steps", "regions in every step, T 8.75, order 1"} & set(out.splitlines())
    code, _, err = ras_dit(*words, "--budget", -1, "--list")
    assert code == 2
    assert "--budget: got -1; allowed: token-steps above 0" in err
    code, _, err = ras_dit(*words, *chosen, *size)
    assert code == 0, err
    rows = json.loads((tmp_path / "arena" / "results.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["dense", "converged", "preset fast", "config tuned"]
    assert rows[3]["method"]["config"]["sample_ratio"] == 0.5
    RASConfig(sample_ratio=0.25, warmup_steps=2, skip_steps=(5,)).save(tuned)
    code, _, err = ras_dit(*words, *chosen, *size)
    assert code == 2
    assert (
        "config-tuned: was painted with other options: config.sample_ratio: got 0.25, there 0.5; config.skip_s" in err
    )
    assert "Give another --output, or remove that folder, and the method is painted again." in err
    code, _, err = ras_dit(*words, "--suites", "presets", "--only", "preset fats", *size)
    assert code == 2
    assert "--only: got 'preset fats'; allowed: the" in err
    assert "Did you mean 'preset fast'?" in err
