"""`ras-dit generate`: pictures, their metadata, batches that resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers.utils import BaseOutput
from PIL import Image

import ras_dit as library
from ras_dit.cli.pictures import Picture, paint
from ras_dit.cli.pipelines import load_pipeline
from ras_dit.config import RASConfig

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
        ("steps.jsonl", '{"prompt": "a", "steps": 0}', "steps"),
    ],
)
def test_bad_prompt_files(ras_dit: Run, tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text, encoding="latin-1")
    code, _, err = ras_dit("generate", "--prompts-file", tmp_path / name)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
