"""Videos on the command line: animated PNGs of every frame, with the settings in them."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.utils import BaseOutput
from PIL import Image, ImageSequence

import ras_dit as library
from families import wan
from ras_dit.arena import SUITES, Method, StepCache
from ras_dit.arena.rivals import TAYLORSEER
from ras_dit.cli.pictures import Picture, paint
from ras_dit.files import save_png

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
    def load(*_: object, allows_video: bool, **__: object) -> Any:
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
    ras_dit("generate", "a fox", *SHORT, "--dense", "--fps", 8, "-o", tmp_path)
    with Image.open(next(other for other in tmp_path.glob("*.png") if other != path)) as slower:
        assert slower.info["duration"] == 125
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a fox", "num_frames": 9}')
    code, _, err = ras_dit("generate", "--prompts-file", file, *SHORT, "--dense", "-o", tmp_path)
    assert code == 0, err
    assert sorted(len(frames_of(path)) for path in tmp_path.glob("*.png")) == [5, 5, 9]


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
    assert "num_frames: StableDiffusion3Pipeline has no such option; leave it out." in err
    assert not list(tmp_path.glob("*.png"))


def of_its_own_scheduler() -> Any:
    """As Wan comes: UniPC."""
    pipe = build()
    pipe.scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return pipe


@pytest.mark.parametrize("built", [build, of_its_own_scheduler])
def test_an_arena_of_videos(
    ras_dit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: Callable[[], Any]
) -> None:
    """Any scheduler: what it cannot sample with is listed, and its own steps have its name."""
    monkeypatch.setattr("ras_dit.cli.pipelines.load_pipeline", lambda *_, **__: built())
    every_second = {"cache_interval": 2, "max_order": 1}
    methods = [
        Method("Euler, 3 steps", "dense", 3),
        Method("AB2, 3 steps", "dense", 3, "ab2"),
        Method("RAS", "ras", 6, config=library.RASConfig(sample_ratio=0.5, warmup_steps=2)),
        Method(
            "TaylorSeer",
            "cache",
            6,
            cache=StepCache("taylorseer", {**every_second, **TAYLORSEER[" of attention and MLP"]}),
        ),
        Method("finds nothing", "cache", 6, cache=StepCache("taylorseer", every_second)),
    ]
    monkeypatch.setitem(SUITES, "dense", lambda num_steps: methods)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox\na cat\n")
    folder = tmp_path / "arena"
    words = ("arena", *SHORT, "--prompts-file", prompts, "--suites", "dense", "--converged-steps", 9, "-o", folder)
    code, out, err = ras_dit(*words, "--fps", 8)
    assert code == 0, err
    code, _, err = ras_dit(*words, "--fps", 12)
    assert code == 2, "the videos there are of another speed"
    assert "frames per second" in err
    result = json.loads((folder / "results.json").read_text())
    rows = {row["name"]: row for row in result["rows"]}
    own = built is of_its_own_scheduler
    half = "UniPCMultistep, 3 steps" if own else "Euler, 3 steps"
    assert set(rows) == {"dense", "converged", half, "RAS", "TaylorSeer", *([] if own else ["AB2, 3 steps"])}
    assert rows["converged"]["method"]["solver"] == ("euler" if own else "ab2")
    assert list(result["failures"]) == [*(["AB2, 3 steps"] if own else []), "finds nothing"]
    assert "taylorseer found nothing to hook in WanTransformer3DModel" in out
    assert ("need a pipeline with FlowMatchEulerDiscreteScheduler" in out) is own
    dense, ours = (frames_of(folder / slug / "00001.png") for slug in ("dense", "ras"))
    assert len(dense) == len(ours) == 5
    errors = [np.square((a.astype(float) - b) / 255).mean() for a, b in zip(dense, ours, strict=True)]
    assert rows["RAS"]["per_picture"]["psnr_dense"][1] == pytest.approx(-10 * np.log10(np.mean(errors)), abs=1e-3)
    assert rows["RAS"]["token_steps"] == pytest.approx(2 + 4 * 0.5, abs=0.3)
    assert rows["RAS"]["flops_share"] < 1 > rows["TaylorSeer"]["flops_share"]
    assert result["sensitivity"]["second"] == half
    assert len(list((folder / "dense").glob("run-*.json"))) == 2, "one video per call"
    with Image.open(folder / "dense" / "00000.png") as image:
        assert image.info["duration"] == 125


def test_an_arena_of_two_transformers(ras_dit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wan 2.2: the FLOPs of both count, and diffusers' caches, which know of one only, are listed."""

    def built(*_: object, allows_video: bool, **__: object) -> Any:
        two = wan.build_two()
        pipe = build()
        pipe.register_modules(transformer_2=two.transformer_2)
        pipe.register_to_config(boundary_ratio=0.7)
        return pipe

    monkeypatch.setattr("ras_dit.cli.pipelines.load_pipeline", built)
    cached = Method("TaylorSeer", "cache", 6, cache=StepCache("taylorseer", {"cache_interval": 2, "max_order": 1}))
    ours = Method("RAS", "ras", 6, config=library.RASConfig(step_ratios=(1.0, 0.0, 1.0, 1.0, 0.0, 1.0)))
    monkeypatch.setitem(SUITES, "dense", lambda num_steps: [cached, ours])
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox\n")
    words = ("--prompts-file", prompts, "--suites", "dense", "--converged-steps", 9, "-o", tmp_path / "arena")
    code, _, err = ras_dit("arena", *SHORT, *words)
    assert code == 0, err
    result = json.loads((tmp_path / "arena" / "results.json").read_text())
    assert "two transformers" in result["failures"]["TaylorSeer"]
    row = next(row for row in result["rows"] if row["name"] == "RAS")
    assert row["token_steps"] == 4
    assert row["flops_share"] == pytest.approx(4 / 6, abs=1e-3)


def test_an_arena_of_a_scheduler_that_adds_noise_is_refused(
    ras_dit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noisy(*_: object, allows_video: bool, **__: object) -> Any:
        pipe = build()
        pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True)
        return pipe

    monkeypatch.setattr("ras_dit.cli.pipelines.load_pipeline", noisy)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox\n")
    code, _, err = ras_dit("arena", *SHORT, "--prompts-file", prompts, "-o", tmp_path / "arena")
    assert code == 2
    assert "adds fresh noise at every step, so that RAS runs dense and nothing can be compared" in err
    assert not list((tmp_path / "arena").rglob("*.png"))


@dataclass
class Sounding(BaseOutput):
    frames: list[list[str]]
    audio: list[float] | None


def test_a_pipeline_that_returns_one_video_and_no_list_of_videos() -> None:
    """Cosmos 3."""

    class Pipe:
        def __call__(self, prompt: str, num_inference_steps: int, generator: object, output_type: str) -> Any:
            return (["first", "second"], None)

    assert paint(Pipe(), Picture("a fox")) == ["first", "second"]


def test_sound_is_noted_once_for_a_batch(ras_dit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sounding(*args: Any, **call: Any) -> Any:
        with warnings.catch_warnings():  # whatever does so has Python forget what it warned of
            warnings.simplefilter("ignore")
        return Sounding(plain(*args, **call)[0], [0.5])

    plain = diffusers.WanPipeline.__call__
    monkeypatch.setattr(diffusers.WanPipeline, "__call__", functools.wraps(plain)(sounding))
    code, _, err = ras_dit("generate", "a fox", "a cat", *SHORT, *CONFIG, "-o", tmp_path)
    assert code == 0, err
    assert err.count("WanPipeline makes sound, too; only the video is kept.") == 1


@pytest.mark.parametrize("audio", [[0.5], None])
def test_sound_that_is_not_kept_is_said(audio: list[float] | None) -> None:
    class Pipe:
        def __call__(self, prompt: str, num_inference_steps: int, generator: object, output_type: str) -> BaseOutput:
            return Sounding([["first", "second"]], audio)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert paint(Pipe(), Picture("a fox")) == ["first", "second"]
    said = [str(one.message) for one in caught if one.category is library.RASWarning]
    assert said == (["Pipe makes sound, too; only the video is kept."] if audio else [])


def test_frames_that_are_equal_stay_as_many_as_they_are(tmp_path: Path) -> None:
    """Pillow joins them otherwise, and a video without motion becomes a picture."""
    red, blue = (Image.new("RGB", (8, 8), color) for color in ("red", "blue"))
    for number, frames in enumerate(([red, red, red], [red, blue, blue, red, red])):
        save_png(frames, tmp_path / f"{number}.png")
        read = frames_of(tmp_path / f"{number}.png")
        assert len(read) == len(frames)
        assert all(np.array_equal(a, np.asarray(b)) for a, b in zip(read, frames, strict=True))
