"""`ras-dit metrics`: two folders, pair by pair."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ras_dit as library
from ras_dit.files import save_png
from stand_ins import lpips_file

Run = Callable[..., tuple[int, str, str]]
SHORT = ("--steps", 10, "--height", 32, "--width", 48)


def noisy(strength: int, seed: int = 0, size: tuple[int, ...] = (80, 64, 3)) -> Image.Image:
    random = np.random.default_rng(0)
    picture = random.integers(60, 180, size, dtype=np.int16)
    noise = np.random.default_rng(seed + 1).integers(-strength, strength + 1, size)
    return Image.fromarray((picture + noise).astype(np.uint8))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    ours, reference = tmp_path / "ours", tmp_path / "reference"
    for index, strength in enumerate((10, 40, 0)):
        save_png(noisy(strength, index), ours / f"{index}.png")
        save_png(noisy(0), reference / f"{index}.png")
    return ours, reference


def test_the_mean_and_the_worst_of_all_pairs(
    ras_dit: Run, folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchmetrics")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    ours, reference = folders
    weights = ("--lpips-weights", lpips_file(tmp_path / "alex.pth"))
    code, out, err = ras_dit("metrics", ours, reference, "--json", tmp_path / "found.json", *weights)
    assert code == 0, err
    found = json.loads((tmp_path / "found.json").read_text())["metrics"]
    assert set(found) == {"psnr", "ssim", "lpips"}
    for name, function in (("psnr", library.psnr), ("ssim", library.ssim)):
        expected = [
            min(function(Image.open(ours / f"{index}.png"), Image.open(reference / f"{index}.png")), 60.0)
            for index in range(3)
        ]
        assert list(found[name]["per_picture"].values()) == pytest.approx(expected)
        mean, low, high = found[name]["mean"]
        assert mean == pytest.approx(sum(expected) / 3)
        assert low < mean < high
    assert found["psnr"]["per_picture"]["2.png"] == 60.0
    assert found["lpips"]["per_picture"]["2.png"] == 0
    assert {one["worst"] for one in found.values()} == {"1.png"}
    assert "3 pair(s)" in out
    assert f"{found['psnr']['mean'][0]:.2f}" in out
    code, out, _ = ras_dit("metrics", ours, reference)
    assert code == 0
    assert "LPIPS: no weights; give --lpips-weights FILE" in " ".join(out.split())
    for folder in folders:
        save_png(noisy(5, 0, (16, 16, 3)), folder / "small.png")
    code, out, _ = ras_dit("metrics", ours, reference, *weights)
    assert code == 0
    assert "LPIPS: left out; a picture has a side of less than" in " ".join(out.split())


def test_pictures_of_generate_find_their_partners(ras_dit: Run, model: str, tmp_path: Path) -> None:
    words = ("generate", "a fox", "an owl", "-m", model, *SHORT)
    assert ras_dit(*words, "-o", tmp_path / "ras", "--sample-ratio", 0.2, "--warmup-steps", 2)[0] == 0
    assert ras_dit(*words, "-o", tmp_path / "dense", "--dense")[0] == 0
    code, _, err = ras_dit("metrics", tmp_path / "ras", tmp_path / "dense", "--json", tmp_path / "found.json")
    assert code == 0, err
    psnr = json.loads((tmp_path / "found.json").read_text())["metrics"]["psnr"]
    assert sorted(name.split("-seed")[0] for name in psnr["per_picture"]) == ["a-fox", "an-owl"]
    assert all(10 < value < 60 for value in psnr["per_picture"].values())


def test_videos_are_compared_over_their_frames(ras_dit: Run, tmp_path: Path) -> None:
    for name, strength in (("ours", 30), ("reference", 0)):
        save_png([noisy(0), noisy(strength), noisy(0)], tmp_path / name / "film.png")
    code, _, err = ras_dit("metrics", tmp_path / "ours", tmp_path / "reference", "--json", tmp_path / "found.json")
    assert code == 0, err
    (value,) = json.loads((tmp_path / "found.json").read_text())["metrics"]["psnr"]["per_picture"].values()
    assert value == pytest.approx(library.psnr(noisy(30), noisy(0)) + 10 * np.log10(3), abs=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ours, reference: (reference / "1.png").unlink(), "1.png has no partner in"),
        (lambda ours, reference: save_png(noisy(0, 0, (40, 64, 3)), ours / "1.png"), "1.png of 3x40x64 and"),
        (lambda ours, reference: [path.unlink() for path in ours.iterdir()], "holds no pictures or videos"),
    ],
)
def test_folders_that_do_not_fit(
    ras_dit: Run, folders: tuple[Path, Path], change: Callable[..., Any], message: str
) -> None:
    change(*folders)
    code, out, err = ras_dit("metrics", *folders)
    assert code == 2
    assert message in err
    assert not out


def test_a_folder_with_itself_or_with_none(ras_dit: Run, folders: tuple[Path, Path], tmp_path: Path) -> None:
    for other, message in ((folders[0], "twice; give two"), (tmp_path / "none", "which is no folder")):
        code, _, err = ras_dit("metrics", folders[0], other)
        assert code == 2
        assert message in err
    code, _, err = ras_dit("metrics", *folders, "--lpips-weights", tmp_path / "none.pth")
    assert code == 2
    assert "--lpips-weights: got" in err
