"""`ras-dit generate`: pictures, their metadata, batches that resume."""

from __future__ import annotations

import inspect
import itertools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.utils import BaseOutput
from packaging.version import Version
from PIL import Image
from rich.progress import Progress

import ras_dit as library
from families import (
    allegro,
    cogvideox,
    cogview3plus,
    easyanimate,
    flux,
    flux_images,
    hunyuan_dit,
    krea2,
    mochi,
    omnigen,
    pixart,
    prx,
    z_image,
)
from ras_dit.cli.picture_checks import ROUNDING, STRICT, _num_steps, check_picture, num_evaluations
from ras_dit.cli.pictures import Picture, paint
from ras_dit.cli.pipelines import load_pipeline
from ras_dit.cli.progress import described_progress
from ras_dit.cli.prompts import ALLOWED, HIDDEN, KINDS, PROMPT_KEYS, read_prompts
from ras_dit.config import RASConfig
from tiny import tiny_vae

SHORT = ("--steps", 8, "--guidance", 3)
Run = Callable[..., tuple[int, str, str]]


def pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if ".heatmap" not in path.name and path.suffix == ".png")


def test_picture_and_metadata(ras_dit: Run, model: str, tmp_path: Path) -> None:
    flags = ("--sample-ratio", 0.5, "--refresh-steps", "4,0.75", "--refresh-every", "none")
    code, out, _ = ras_dit("generate", "a fox", "-m", model, *SHORT, "--seed", 3, *flags, "-o", tmp_path, "--trace")
    assert code == 0
    (path,) = pictures(tmp_path)
    assert str(path) in out
    image = Image.open(path)
    config = RASConfig.from_dict(json.loads(image.text["config"]))
    assert config == RASConfig.preset("balanced").replace(sample_ratio=0.5, refresh_steps=(4, 0.75), refresh_every=None)
    assert image.text["prompt"] == "a fox"
    assert {key: json.loads(image.text[key]) for key in ("seed", "steps", "guidance", "width", "height")} == {
        "seed": 3,
        "steps": 8,
        "guidance": 3,
        "width": 32,
        "height": 32,
    }
    assert json.loads(image.text["versions"])["ras_dit"] == library.__version__
    assert "token-steps" in image.text["summary"]
    wrote, *about = out.splitlines()
    first, *rest = image.text["summary"].splitlines()
    assert wrote == f"Wrote {path}"
    assert len(about) == 1
    assert about[0].startswith(f"  {first} {rest[0]}")
    assert re.search(r"T = [\d.]+ token-steps instead of 8\. .* predicted about [\d.]+x, measured [\d.]+x\.", about[0])
    code, out, _ = ras_dit("generate", "a fox", "-m", model, *SHORT, "--dense", "-o", tmp_path / "dense")
    assert (code, len(out.splitlines())) == (0, 1), "a dense run has no summary"
    trace = library.Trace.from_json(path.with_suffix(".trace.json").read_text())
    plan = library.build_plan(config, 8, trace.num_tokens)
    assert [step.kind for step in trace.steps] == [step.kind for step in plan]
    assert Image.open(path.with_suffix(".heatmap.png")).size == image.size
    assert not list(tmp_path.glob(".*")), "no temporary file is left"


def test_equals_the_library(ras_dit: Run, model: str, tmp_path: Path) -> None:
    common = ("generate", "a cat", "-m", model, *SHORT)
    ras_dit(*common, "--dense", "-o", tmp_path / "dense")
    ras_dit(*common, "--preset", "fast", "-o", tmp_path / "ras")
    pipe = load_pipeline(model, device="cpu")
    picture = Picture("a cat", steps=8, guidance=3.0)
    (dense,) = paint(pipe, picture)
    with library.accelerate(pipe, "fast"):
        (accelerated,) = paint(pipe, picture)
    for folder, expected in (("dense", dense), ("ras", accelerated)):
        (path,) = pictures(tmp_path / folder)
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(expected))


@dataclass
class Output(BaseOutput):
    image: list[str]


def test_pictures_by_any_name() -> None:
    """Most pipelines say ``images``, Kandinsky ``image``."""

    class Pipe:
        def __call__(self, prompt: str, num_inference_steps: int, generator: object) -> BaseOutput:
            return Output([f"{prompt} in {num_inference_steps} steps"])

    assert paint(Pipe(), Picture("a fox", steps=3)) == ["a fox in 3 steps"]


def test_batch_resumes(ras_dit: Run, model: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    entries: list[dict[str, Any]] = [{"prompt": "a fox", "seed": 7, "height": 48}, {"prompt": "an owl"}]
    file.write_text("\n".join(json.dumps(entry) for entry in entries))
    call = ("generate", "--prompts-file", file, "-m", model, *SHORT, "-n", 2, "-o", tmp_path / "out")
    ras_dit(*call)
    paths = pictures(tmp_path / "out")
    sizes = {path.name.split("-seed")[0]: Image.open(path).size for path in paths}
    assert len(paths) == 4
    assert sizes == {"a-fox": (32, 48), "an-owl": (32, 32)}
    paths[1].unlink()
    before = {path: path.stat().st_mtime_ns for path in pictures(tmp_path / "out")}
    code, out, _ = ras_dit(*call)
    assert code == 0
    assert "3 of 4 pictures are there already" in out
    assert pictures(tmp_path / "out") == paths
    assert all(path.stat().st_mtime_ns == moment for path, moment in before.items())
    ras_dit(*call, "--sample-ratio", 0.5)
    assert len(pictures(tmp_path / "out")) == 8, "other settings are other files"


def test_a_trace_that_is_asked_for_later_is_made(ras_dit: Run, model: str, tmp_path: Path) -> None:
    call = ("generate", "a fox", "-m", model, *SHORT, "-o", tmp_path)
    ras_dit(*call)
    (path,) = pictures(tmp_path)
    before = np.asarray(Image.open(path))
    assert "--overwrite paints them again." in ras_dit(*call)[1]
    code, out, _ = ras_dit(*call, "--trace")
    assert (code, "there already" in out) == (0, False)
    assert path.with_suffix(".trace.json").is_file()
    assert path.with_suffix(".heatmap.png").is_file()
    assert np.array_equal(np.asarray(Image.open(path)), before)
    assert "1 of 1 pictures are there already" in ras_dit(*call, "--trace")[1]


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Progress]:
    """Every bar that was shown; none may run over."""
    found: list[Progress] = []

    class Bar(Progress):
        def __init__(self, *columns: Any, **options: Any) -> None:
            super().__init__(*columns, **options)
            found.append(self)

        def update(self, *words: Any, **options: Any) -> None:
            super().update(*words, **options)
            (task,) = self.tasks
            assert task.total is not None
            assert task.completed <= task.total

    monkeypatch.setattr("ras_dit.cli.progress.Progress", Bar)
    return found


@pytest.mark.parametrize("num_calls", [0, 5, 15])
def test_a_bar_ends_full_however_often_a_pipeline_calls_back(
    ras_dit: Run, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bars: list[Progress], num_calls: int
) -> None:
    def paint_so(_: Any, picture: Picture, on_step: Callable[[], None]) -> list[Image.Image]:
        for _ in range(num_calls):
            on_step()
        return [Image.new("RGB", (32, 32))]

    monkeypatch.setattr("ras_dit.cli.pictures.paint", paint_so)
    code, _, err = ras_dit("generate", "a fox", "-m", model, *SHORT, "--dense", "-n", 2, "-o", tmp_path)
    assert code == 0, err
    (bar,) = bars
    assert (bar.tasks[0].completed, bar.tasks[0].total) == (16, 16)


def test_a_bar_of_which_more_comes_than_was_thought_grows(bars: list[Progress]) -> None:
    with described_progress("some", 1) as advance:
        advance("one")
        advance("another")
    (task,) = bars[0].tasks
    assert (task.completed, task.total, task.description) == (2, 2, "another")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("missing.txt", None, "no file"),
        ("prompts.csv", "a fox", ".jsonl"),
        ("empty.txt", "# nothing\n\n", "no prompt"),
        ("broken.jsonl", '{"prompt": "a"}\n{', "line 2"),
        ("keys.jsonl", '{"prompt": "a", "sed": 3}', "sed"),
        ("types.jsonl", '{"prompt": "a", "seed": "3"}', "seed"),
        ("latin.txt", "caf\xe9", "--prompts-file: got "),
        ("steps.jsonl", '{"prompt": "a"}\n\n{"prompt": "a", "steps": 0}', "steps.jsonl, line 3: steps: got 0"),
        ("negative.jsonl", '{"prompt": "a", "negative_prompt": 3}', "line 1: negative_prompt: got 3; give a text."),
        ("image.jsonl", '{"prompt": "a", "image": "x.png"}', "image.jsonl, line 1: image: got "),
    ],
)
def test_bad_prompt_files(ras_dit: Run, tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text, encoding="latin-1")
    code, _, err = ras_dit("generate", "--prompts-file", tmp_path / name)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "flags", "message"),
    [
        ('{"prompt": "a", "height": 33}', (), "height: got 33; allowed: multiples of 4 pixels"),
        ('{"prompt": "a", "width": 33}', ("--dense",), "width: got 33; allowed: multiples of 4 pixels"),
        ('{"prompt": "a", "steps": 4}', ("--refresh-steps", 6), "refresh_steps: got 6, but this run has 4"),
        ('{"prompt": "a", "num_frames": 5}', (), "num_frames: StableDiffusion3Pipeline has no such option"),
    ],
)
def test_a_mistake_in_a_line_is_known_before_the_first_picture(
    ras_dit: Run, model: str, tmp_path: Path, line: str, flags: tuple, message: str
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'{{"prompt": "a fox"}}\n{line}\n{{"prompt": "an owl"}}\n')
    code, out, err = ras_dit("generate", "--prompts-file", file, "-m", model, *SHORT, *flags, "-o", tmp_path / "out")
    assert (code, out) == (2, "")
    assert f"ras-dit: error: --prompts-file: {file}, line 2: {message}" in err
    assert not list(tmp_path.glob("out/*"))


def test_what_only_painting_shows_names_its_line(
    ras_dit: Run, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("# two\na fox\na cat\n")

    def fail(_: Any, picture: Picture, *__: Any) -> Any:
        raise ValueError(f"no {picture.prompt} today")

    monkeypatch.setattr("ras_dit.cli.pictures.paint", fail)
    for words, place in ((("--prompts-file", file), f"--prompts-file: {file}, line 2: "), (("a fox",), "")):
        code, _, err = ras_dit("generate", *words, "-m", model, *SHORT, "-o", tmp_path)
        assert code == 2
        assert err.strip() == f"ras-dit: error: {place}no a fox today"


@pytest.mark.parametrize("family", [easyanimate, flux, hunyuan_dit, krea2, pixart, prx])
def test_sizes_that_a_pipeline_rounds_are_left_to_it(family: Any) -> None:
    pipe = flux.build(vae=tiny_vae(4, num_levels=3)) if family is flux else family.build()
    for size in ({"height": 65}, {"height": 63, "width": 64}):
        check_picture(pipe, Picture("a fox", **size), RASConfig.preset("regions"))
    with pytest.raises(ValueError, match="refresh_steps: got 30"):
        check_picture(pipe, Picture("a fox"), RASConfig(refresh_steps=(30,)))


@pytest.mark.parametrize("name", ROUNDING)
def test_pipelines_that_round_are_of_diffusers(name: str) -> None:
    if Version(diffusers.__version__) < Version("0.42"):
        pytest.skip("not all of them are in the oldest that is supported")
    assert issubclass(getattr(diffusers, name), diffusers.DiffusionPipeline)


def test_a_size_off_the_grid_is_rounded_by_the_pipeline_itself() -> None:
    size = {"height": 65, "width": 64}
    pipe = krea2.build()
    check_picture(pipe, Picture("a fox", **size), None)
    painted = pipe(**{**krea2.call(), **size, "num_inference_steps": 1, "latents": None}).images
    assert painted.shape == (1, 5 * 4, 16), "as 80 by 64 pixels"


@pytest.mark.parametrize("family", [allegro, cogvideox, cogview3plus, mochi, omnigen, z_image])
def test_sizes_that_only_a_pipelines_own_check_lets_pass_are_refused(family: Any) -> None:
    pipe = family.build()
    for name, other in (("height", "width"), ("width", "height")):
        for size in ({name: 72}, {name: 72, other: 64}):
            with pytest.raises(ValueError, match=f"{name}: got 72; allowed: multiples of 16 pixels, at least 16"):
                check_picture(pipe, Picture("a fox", **size), None)
        check_picture(pipe, Picture("a fox", **{name: 80}), None)


def test_pipelines_that_are_strict_are_of_diffusers() -> None:
    for start in STRICT:
        assert any(name.startswith(start) and name.endswith("Pipeline") for name in dir(diffusers)), start


def test_a_strength_shortens_the_run() -> None:
    """0.6 (the default) of 28 steps are 17: a step may lie outside them, and what a share says comes sooner."""
    pipe = flux_images.build(diffusers.FluxImg2ImgPipeline)
    picture = Picture("a fox", steps=28)
    assert num_evaluations(pipe, picture) == 17
    assert num_evaluations(pipe, Picture("a fox", steps=28, strength=0.25)) == 7
    assert num_evaluations(pipe, Picture("a fox", steps=28, strength=1)) == 28
    later = RASConfig(warmup_steps=0.5, skip_steps=(10,))
    with pytest.raises(ValueError, match=r"skip_steps: got \[10\], inside the warm-up of 14"):
        library.build_plan(later, 28, 4096)
    check_picture(pipe, picture, later)
    check_picture(pipe, picture, RASConfig(refresh_steps=(16,)))
    with pytest.raises(ValueError, match="refresh_steps: got 17, but this run has 17"):
        check_picture(pipe, picture, RASConfig(refresh_steps=(17,)))
    pipe.scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    assert pipe.scheduler.order == 2
    assert num_evaluations(pipe, picture) == 33
    check_picture(pipe, picture, RASConfig(refresh_steps=(32,)))
    with pytest.raises(ValueError, match="refresh_steps: got 33, but this run has 33"):
        check_picture(pipe, picture, RASConfig(refresh_steps=(33,)))


@pytest.mark.parametrize(
    "name",
    [
        "ChromaImg2ImgPipeline",
        "ChromaInpaintPipeline",
        "FluxControlImg2ImgPipeline",
        "FluxImg2ImgPipeline",
        "FluxInpaintPipeline",
        "QwenImageEditInpaintPipeline",
        "QwenImageImg2ImgPipeline",
        "StableDiffusion3Img2ImgPipeline",
        "StableDiffusion3InpaintPipeline",
        "ZImageImg2ImgPipeline",
    ],
)
def test_a_shortened_run_is_as_long_as_diffusers_makes_it(name: str) -> None:
    kind = getattr(diffusers, name)
    strength = inspect.signature(kind.__call__).parameters["strength"].default
    assert strength < 1
    for steps, given in itertools.product(range(1, 60), (None, 0.1, 0.35, 0.7, 1.0)):
        scheduler = SimpleNamespace(timesteps=range(steps), order=1)
        pipe = SimpleNamespace(scheduler=scheduler)
        timesteps, _ = kind.get_timesteps(pipe, steps, strength if given is None else given, device="cpu")
        picture = Picture("a fox", steps=steps, strength=given)
        assert _num_steps(kind.__new__(kind), picture) == len(timesteps), steps


def test_the_strength_of_a_condition_does_not_shorten_the_run() -> None:
    picture = Picture("a fox runs", steps=28, strength=0.5)
    assert _num_steps(diffusers.LTXConditionPipeline.__new__(diffusers.LTXConditionPipeline), picture) == 28
    assert _num_steps(diffusers.FluxImg2ImgPipeline.__new__(diffusers.FluxImg2ImgPipeline), picture) == 14


def test_a_strength_is_refused_where_there_is_none() -> None:
    check_picture(flux_images.build(diffusers.FluxImg2ImgPipeline), Picture("a fox", steps=10, strength=0.01), None)
    with pytest.raises(ValueError, match="strength: FluxPipeline has no such option"):
        check_picture(flux.build(vae=tiny_vae(4, num_levels=3)), Picture("a fox", strength=0.5), None)


def test_a_batch_goes_on_after_a_picture_that_failed(
    ras_dit: Run, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = diffusers.StableDiffusion3Pipeline.__call__
    failing: dict[str, Exception] = {"an owl": torch.OutOfMemoryError("CUDA out of memory.")}

    def call(self: Any, *, prompt: str, **options: Any) -> Any:
        if prompt in failing:
            raise failing[prompt]
        return original(self, prompt=prompt, **options)

    call.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]

    monkeypatch.setattr(diffusers.StableDiffusion3Pipeline, "__call__", call)
    words = ("generate", "a fox", "an owl", "a cat", "-m", model, *SHORT, "-o", tmp_path)
    code, out, err = ras_dit(*words)
    assert (code, out.count("Wrote ")) == (2, 1)
    assert err.strip().startswith("ras-dit: error: out of memory: CUDA out of memory.")
    code, out, err = ras_dit(*words, "--keep-going")
    assert (code, out.count("Wrote ")) == (2, 1)
    assert "1 of 3 pictures are there already" in out
    told = [line for line in err.splitlines() if "error" in line]
    assert told[0].startswith("ras-dit: error: 'an owl', seed 0: out of memory: CUDA out of memory.")
    assert told[1].startswith("ras-dit: error: 1 of 2 pictures failed, the others are written.")
    failing.clear()
    code, out, err = ras_dit(*words, "--keep-going")
    assert (code, out.count("Wrote ")) == (0, 1), err
    assert len(list(tmp_path.glob("*.png"))) == 3
    failing["a dog"] = KeyError("a bug")
    with pytest.raises(KeyError):
        ras_dit("generate", "a dog", "-m", model, *SHORT, "-o", tmp_path)
    code, out, err = ras_dit("generate", "a dog", "a horse", "-m", model, *SHORT, "-o", tmp_path, "--keep-going")
    assert (code, out.count("Wrote ")) == (1, 1), "an error of ours leaves its traceback, and the others are painted"
    assert "Traceback" in err
    assert "ras-dit: error: 'a dog', seed 0: KeyError('a bug')" in err


def test_omnigens_prompt_says_where_the_picture_belongs(tmp_path: Path) -> None:
    pipe, path = omnigen.build(), tmp_path / "fox.png"
    Image.new("RGB", (32, 32)).save(path)
    with pytest.raises(ValueError, match=re.escape("prompt: got 'make it red'; allowed (of an OmniGenPipeline with")):
        check_picture(pipe, Picture("make it red", image=path), None)
    check_picture(pipe, Picture("make <img><|image_1|></img> red", image=path), None)
    check_picture(pipe, Picture("make it red"), None)


def test_how_many_the_authors_drop_goes_by_the_tokens_and_their_steps_by_the_run() -> None:
    config = RASConfig.reference(sample_ratio=0.5, skip_num_step=1024, skip_num_step_length=5, reset_steps=(12,))
    pipe = flux.build(vae=tiny_vae(4, num_levels=3))
    library.build_plan(config, 28, 16384)
    with pytest.raises(ValueError, match="skip_num_step=1024"):
        library.build_plan(config, 28, 4096)
    check_picture(pipe, Picture("a fox", steps=28), config)
    with pytest.raises(ValueError, match="refresh_steps: got 12, but this run has 10"):
        check_picture(pipe, Picture("a fox", steps=10), config)


@pytest.mark.parametrize(
    ("line", "flags", "message"),
    [
        ('{"prompt": "a"}', ("--height", 33), "height: got 33; allowed: multiples of 4 pixels"),
        ('{"prompt": "a", "steps": 9}', ("--height", 33), "height: got 33; allowed: multiples of 4 pixels"),
        ('{"prompt": "a", "steps": 9}', ("--refresh-steps", 30), "refresh_steps: got 30, but this run has 8"),
        ('{"prompt": "a", "height": 32}', ("--guidance", "inf"), "guidance: got inf"),
        ('{"prompt": "a", "height": 33}', ("--height", 35), "--prompts-file: {file}, line 1: height: got 33"),
        ('{"prompt": "a", "steps": 0}', ("--height", 33), "--prompts-file: {file}, line 1: steps: got 0"),
    ],
)
def test_a_mistake_in_a_flag_is_not_the_lines(
    ras_dit: Run, model: str, tmp_path: Path, line: str, flags: tuple, message: str
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(line if "--refresh-steps" not in flags else '{"prompt": "a"}\n' + line)
    code, _, err = ras_dit("generate", "--prompts-file", file, "-m", model, *SHORT, *flags, "-o", tmp_path / "out")
    assert code == 2
    assert err.startswith(f"ras-dit: error: {message.format(file=file)}")


def test_the_readme_names_every_key_of_a_line() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    about = readme.split("`generate --prompts-file` takes", 1)[1].split("\n\n", 1)[0]
    assert not [key for key in PROMPT_KEYS if f"`{key}`" not in about]


def test_a_line_sets_every_field_of_a_picture_that_is_not_hidden() -> None:
    assert {*PROMPT_KEYS, *HIDDEN} == {field.name for field in fields(Picture)}
    assert set(KINDS.values()) <= set(ALLOWED)


def test_lines_end_where_json_cannot_go_on(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    prompts = ["a\u2028fox", "an\u2029owl", "a\x85cat", "a dog"]
    lines = [json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in prompts]
    file.write_bytes("{}\n{}\r\n{}\r{}".format(*lines).encode())
    assert [entry["prompt"] for entry in read_prompts(file)] == prompts
