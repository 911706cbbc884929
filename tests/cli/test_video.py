"""Videos on the command line: animated PNGs of every frame, with the settings in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

import ras_dit as library
from families import wan

Run = Callable[..., tuple[int, str, str]]

SHORT = ("-m", "a/video", "--steps", 6, "--height", 32, "--width", 32, "--frames", 5)
CONFIG = ("--sample-ratio", 0.5, "--warmup-steps", 2)


def build() -> Any:
    """A tiny Wan that hears the same in every prompt."""
    pipe = wan.build(vae=wan.tiny_vae())
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    text = torch.randn(1, 9, 24, generator=torch.Generator().manual_seed(0))
    pipe.encode_prompt = lambda **_: (text, -text)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(autouse=True)
def video(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, allows_video: bool) -> Any:
        assert allows_video
        return build()

    monkeypatch.setattr("ras_dit.cli.pipelines.load_pipeline", load)


def frames_of(path: Path) -> list[np.ndarray]:
    with Image.open(path) as image:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]


def test_every_frame_is_in_the_file_and_equals_the_library(ras_dit: Run, tmp_path: Path) -> None:
    code, _, err = ras_dit("generate", "a fox", *SHORT, *CONFIG, "--fps", 8, "--seed", 3, "-o", tmp_path)
    assert code == 0, err
    (path,) = tmp_path.glob("*.png")
    pipe = build()
    with library.accelerate(pipe, library.RASConfig.preset("balanced").replace(sample_ratio=0.5, warmup_steps=2)):
        expected = pipe(
            "a fox",
            num_inference_steps=6,
            height=32,
            width=32,
            num_frames=5,
            output_type="pil",
            generator=torch.Generator().manual_seed(3),
        ).frames[0]
    painted = frames_of(path)
    assert len(painted) == 5
    for frame, one in zip(painted, expected, strict=True):
        assert np.array_equal(frame, np.asarray(one))
    with Image.open(path) as image:
        about: dict[str, str] = image.text  # type: ignore[attr-defined]
        assert image.info["duration"] == 125
    assert {name: json.loads(about[name]) for name in ("num_frames", "fps", "height")} == {
        "num_frames": 5,
        "fps": 8,
        "height": 32,
    }


def test_a_video_that_is_there_is_not_made_again(ras_dit: Run, tmp_path: Path) -> None:
    ras_dit("generate", "a fox", *SHORT, "--dense", "-o", tmp_path)
    (path,) = tmp_path.glob("*.png")
    before = path.stat().st_mtime_ns
    assert "1 of 1 pictures are there already." in ras_dit("generate", "a fox", *SHORT, "--dense", "-o", tmp_path)[1]
    assert path.stat().st_mtime_ns == before
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a fox", "num_frames": 9}')
    code, _, err = ras_dit("generate", "--prompts-file", file, *SHORT, "--dense", "-o", tmp_path)
    assert code == 0, err
    assert sorted(len(frames_of(path)) for path in tmp_path.glob("*.png")) == [5, 9]


def test_the_map_moves_with_the_video(ras_dit: Run, tmp_path: Path) -> None:
    code, _, err = ras_dit("generate", "a fox", *SHORT, *CONFIG, "--trace", "-o", tmp_path)
    assert code == 0, err
    (path,) = tmp_path.glob("*.heatmap.png")
    assert len(frames_of(path)) == 5


def test_a_comparison_shows_both_videos_and_their_maps(ras_dit: Run, tmp_path: Path) -> None:
    numbers = tmp_path / "numbers.json"
    words = ("--repeats", 1, "-o", tmp_path / "both.png", "--json", numbers)
    code, out, err = ras_dit("compare", "a fox", *SHORT, *CONFIG, *words)
    assert code == 0, err
    assert "PSNR against dense" in out
    frames = frames_of(tmp_path / "both.png")
    assert len(frames) == 5
    assert frames[0].shape[1] > 3 * 300
    found = json.loads(numbers.read_text())
    assert found["picture"]["num_frames"] == 5
    assert 5 < found["psnr"] < 80


def test_frames_are_refused_where_pictures_are_made(ras_dit: Run, model: str, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.undo()
    code, _, err = ras_dit("generate", "a fox", "-m", model, "--steps", 2, "--frames", 5, "-o", tmp_path)
    assert code == 2
    assert "num_frames: StableDiffusion3Pipeline has no such option." in err
    assert not list(tmp_path.glob("*.png"))
