"""The other commands, and the flags derived from RASConfig."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from PIL import Image

import ras_dit as library
from ras_dit.cli import options
from ras_dit.cli.compare import compare
from ras_dit.cli.generate import generate
from ras_dit.cli.information import plan
from ras_dit.cli.pipelines import load_pipeline, pipeline_outline
from ras_dit.config import RASConfig
from ras_dit.presets import PRESETS

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("command", [generate, compare, plan])
def test_flags_are_the_fields_of_the_config(command: Callable[..., None]) -> None:
    panels = {}
    for parameter in inspect.signature(command).parameters.values():
        option = parameter.annotation.__metadata__[0]
        if isinstance(option, typer.models.OptionInfo) and option.rich_help_panel:
            panels[option.default] = (option.rich_help_panel, option.help)
    for flag in ("--preset", "--config"):
        assert panels.pop(flag)[0] == options.IMPORTANT
    expected = {
        options.flag_of(field.name): (
            options.IMPORTANT if field.metadata["important"] else options.TINKER,
            field.metadata["help"],
        )
        for field in dataclasses.fields(RASConfig)
    }
    assert panels == expected
    assert len(expected) == len(dataclasses.fields(RASConfig))


def test_every_field_survives_its_flag() -> None:
    config = RASConfig(
        sample_ratio=0.5,
        warmup_steps=0.2,
        refresh_every=5,
        refresh_steps=(9, 0.5),
        importance="std",
        forecast_order=2,
        final_sample_ratio=0.1,
        skip_steps=(7,),
        end_step=20,
        starvation_scale=0.3,
        high_ratio=0.5,
        forecast_damping=0.9,
        forecast_midpoint=True,
        token_multiple=16,
        seed=4,
    )
    flags: dict[str, str | None] = {
        name: ",".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in config.to_dict().items()
    }
    assert options.build_config("fast", None, flags) == config


def test_flags_go_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    RASConfig(sample_ratio=0.5, refresh_every=4, end_step=9).save(path)
    config = options.build_config(None, path, {"sample_ratio": "0.75", "end_step": "none", "seed": None})
    assert config == RASConfig(sample_ratio=0.75, refresh_every=4)
    with pytest.raises(ValueError, match="give one of them"):
        options.build_config("fast", path, {})


def test_plan_needs_no_weights(ras_dit: Run, model: str) -> None:
    outline = pipeline_outline(model)
    assert all(parameter.is_meta for parameter in outline.transformer.parameters())
    code, out, _ = ras_dit("plan", "-m", model, "--steps", 12, "--height", 64, "--width", 96, "--preset", "regions")
    assert code == 0
    assert "GFLOP" in out
    assert "region" in out
    pipe = load_pipeline(model, "bfloat16", "cpu")
    expected = library.plan_for(pipe, PRESETS["regions"], 12, 64, 96)
    assert library.plan_for(pipeline_outline(model, "bfloat16"), PRESETS["regions"], 12, 64, 96) == expected
    assert f"T = {expected.token_steps:.2f}" in out


def test_compare(ras_dit: Run, model: str, tmp_path: Path) -> None:
    png, numbers = tmp_path / "compare.png", tmp_path / "compare.json"
    call = ("compare", "a fox", "-m", model, "--steps", 8, "--repeats", 2, "-o", png, "--json", numbers)
    code, out, _ = ras_dit(*call, "--sample-ratio", 0.25)
    assert code == 0
    assert "PSNR" in out
    record = json.loads(numbers.read_text())
    assert len(record["dense_seconds"]) == len(record["ras_seconds"]) == 2
    assert record["config"]["sample_ratio"] == 0.25
    assert record["token_steps"] < record["num_steps"] == 8
    assert record["speedup_limit"] > 1
    assert Image.open(png).width > 3 * 384
    ras_dit(*call, "--sample-ratio", 1)
    record = json.loads(numbers.read_text())
    assert record["psnr"] is None, "equal pictures"
    assert record["ssim"] == pytest.approx(1)


@pytest.mark.parametrize("ending", ["json", "yaml"])
def test_calibrate(ras_dit: Run, model: str, tmp_path: Path, ending: str) -> None:
    prompts, config = tmp_path / "prompts.txt", tmp_path / f"fitted.{ending}"
    prompts.write_text("a fox\na cat\n")
    sizes = ("--steps", 12, "--height", 64, "--width", 64)
    call = ("calibrate", "-m", model, "--prompts-file", prompts, "--preset", "fast", "-o", config, *sizes)
    code, out, _ = ras_dit(*call)
    assert code == 0
    assert f"Fitted to 2 pictures of 12 steps. Wrote {config}" in out
    fitted = RASConfig.load(config)
    assert fitted.replace(forecast_fit=()) == PRESETS["fast"]
    assert len(fitted.forecast_fit) == 4 * 12
    code, _, err = ras_dit("generate", "an owl", "-m", model, *sizes, "--config", config, "-o", tmp_path / "pictures")
    assert code == 0, err
    assert "forecast_fit" not in err


def test_demo(ras_dit: Run, model: str, tmp_path: Path) -> None:
    sheet = tmp_path / "demo.png"
    code, out, _ = ras_dit("demo", "-m", model, "--steps", 6, "--num-prompts", 2, "-o", sheet)
    assert code == 0
    assert str(sheet) in out
    assert "lossy" in out
    assert len(list((tmp_path / "demo").glob("*.png"))) == 2 + 2 * 4, "dense, and two presets with their maps"
    width, height = Image.open(sheet).size
    assert height > width > 2 * 256


def test_tables(ras_dit: Run) -> None:
    assert "SD3Transformer2DModel" in ras_dit("models")[1]
    out = ras_dit("presets")[1]
    assert all(name in out for name in PRESETS)
    assert ras_dit("--version")[:2] == (0, f"ras-dit {library.__version__}\n")
