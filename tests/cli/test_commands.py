"""The other commands, and the flags derived from RASConfig."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import typer
from PIL import Image

import ras_dit as library
from families import cogvideox, cosmos, flux, hunyuan_dit, qwen_image, qwen_images, wan
from ras_dit.cli import main, options
from ras_dit.cli.compare import compare
from ras_dit.cli.generate import generate
from ras_dit.cli.information import plan
from ras_dit.cli.pipelines import load_pipeline, makes_video, pipeline_outline
from ras_dit.config import RASConfig
from ras_dit.presets import PRESETS
from tiny import tiny_vae

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
            f"{field.metadata['help']} RASConfig's default: {written(field.default)}.",
        )
        for field in dataclasses.fields(RASConfig)
    }
    assert panels == expected
    assert len(expected) == len(dataclasses.fields(RASConfig))


def written(default: object) -> str:
    return {"False": "false", "None": "none", "()": "none"}.get(str(default), str(default))


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


def test_a_plan_for_another_machine(ras_dit: Run, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop plans for a server, whose GPU is not here, and the plan says what it is for."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    size = (PRESETS["regions"].replace(kv_cache_device="cpu"), 12, 64, 96)
    words = ("plan", "-m", model, "--steps", 12, "--height", 64, "--width", 96, "--preset", "regions")
    caches, speeds = set(), set()
    for flags, device, dtype in (
        ((), "cpu", "float32"),
        (("--device", "cuda"), "cuda", "bfloat16"),
        (("--device", "cuda", "--dtype", "float32"), "cuda", "float32"),
    ):
        code, out, err = ras_dit(*words, "--kv-cache-device", "cpu", *flags)
        assert code == 0, err
        assert f"Predicted for a {device} device, by constants of its kind; cache in {dtype}." in out
        expected = library.plan_for(pipeline_outline(model, dtype), *size, device=device)
        assert expected.described_speedup in out
        assert expected.cost is not None
        assert f"K/V cache {expected.cost.kv_cache_bytes / 2**20:,.1f} MiB" in out
        caches.add(expected.cost.kv_cache_bytes)
        speeds.add(expected.predicted_speedup)
    assert (len(caches), len(speeds)) == (2, 3)
    on_cpu = library.plan_for(load_pipeline(model, device="cpu"), *size)
    assert library.plan_for(pipeline_outline(model), *size, device="cpu") == on_cpu
    code, _, err = ras_dit(*words, "--device", "toaster")
    assert code == 2
    assert "--device: got 'toaster'; allowed: auto, cpu, cuda" in err


@pytest.mark.parametrize(
    ("build", "call", "num_tokens"),
    [
        (lambda: flux.build(vae=tiny_vae(4, num_levels=3)), ("--height", 64, "--width", 96), 8 * 12),
        (lambda: flux.build(vae=tiny_vae(4)), (), 128 * 128 // 4),
        (lambda: wan.build(vae=wan.tiny_vae()), ("--height", 32, "--width", 64, "--frames", 9), 3 * 2 * 4),
        (lambda: wan.build(vae=wan.tiny_vae()), (), 21 * 30 * 52),
        (lambda: qwen_image.build(vae=qwen_images.tiny_vae()), ("--height", 32, "--width", 48), 8 * 12),
        (hunyuan_dit.build, ("--height", 64, "--width", 64), 4 * 4),
        (lambda: cosmos.build(diffusers.Cosmos2TextToImagePipeline, in_channels=4), (), 48 * 85),
    ],
)
def test_a_plan_of_any_pipeline(
    ras_dit: Run, tmp_path: Path, build: Callable[[], Any], call: tuple[object, ...], num_tokens: int
) -> None:
    """Pipelines without text encoders; autoencoders scale by 4, 2, 8, 2 and, where there is none, 8."""
    build().save_pretrained(tmp_path)
    code, out, err = ras_dit("plan", "-m", tmp_path, "--steps", 6, "--sample-ratio", 0.25, "--warmup-steps", 2, *call)
    assert code == 0, err
    assert re.search(rf"dense\D+{num_tokens}\D", out)
    plan = library.plan_for(pipeline_outline(str(tmp_path)), RASConfig(sample_ratio=0.25, warmup_steps=2), 6)
    assert plan.cost is not None


def test_a_plan_counts_reference_tokens_and_the_batch(ras_dit: Run, tmp_path: Path) -> None:
    flux.build(vae=tiny_vae(4, num_levels=3)).save_pretrained(tmp_path)
    words = ("plan", "-m", tmp_path, "--steps", 12, "--height", 64, "--width", 96, "--preset", "regions")
    outline, size = pipeline_outline(str(tmp_path)), (PRESETS["regions"], 12, 64, 96, None, None)
    for flags, counts in (
        ((), (1, 0)),
        (("--reference-tokens", 96), (1, 96)),
        (("--batch", 64), (64, 0)),
        (("--guidance-rows", 2), (1, 0, 2)),
    ):
        code, out, err = ras_dit(*words, *flags)
        assert code == 0, err
        plan = library.plan_for(outline, *size, *counts)
        assert plan.described_speedup in out
        assert plan.cost is not None
        assert f"{plan.cost.total_flops / 1e9:,.1f} GFLOP" in out
        assert plan.cost.described_cache in out
    alone, beside = (library.plan_for(outline, *size, 1, count).cost for count in (0, 96))
    assert alone is not None
    assert beside is not None
    assert beside.total_flops > 1.2 * alone.total_flops
    for flag in ("--batch", "--reference-tokens", "--guidance-rows"):
        code, _, err = ras_dit(*words, flag, -1)
        assert code == 2
        assert f"{flag}: got -1" in err


def test_a_size_that_cannot_be_told_is_asked_for(ras_dit: Run, tmp_path: Path) -> None:
    cogvideox.build().save_pretrained(tmp_path)
    code, _, err = ras_dit("plan", "-m", tmp_path, "--height", 32, "--width", 32)
    assert code == 2
    assert "num_frames: got none, and the default of CogVideoXPipeline cannot be told; give their number" in err


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


def test_a_prompt_and_the_path_of_a_model_are_no_markup(ras_dit: Run, model: str, tmp_path: Path) -> None:
    words = ("compare", "a shop sign [/open]", "-m", model, "--steps", 8, "--repeats", 1)
    code, out, err = ras_dit(*words, "-o", tmp_path / "compare.png")
    assert code == 0, err
    assert "a shop sign [/open] (seed 0)" in out
    (tmp_path / "[bold]").mkdir()
    (tmp_path / "[bold]" / "tiny").symlink_to(model, target_is_directory=True)
    code, out, err = ras_dit("plan", "-m", tmp_path / "[bold]" / "tiny", "--steps", 12)
    assert code == 0, err
    assert "[bold]/tiny,12steps" in "".join(out.split()), "its lines are folded"


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


def test_calibrate_finds_the_plan_too(ras_dit: Run, model: str, tmp_path: Path) -> None:
    prompts, config = tmp_path / "prompts.txt", tmp_path / "found.json"
    prompts.write_text("a fox\na cat\n")
    sizes = ("--steps", 12, "--height", 64, "--width", 64)
    call = ("calibrate", "-m", model, "--prompts-file", prompts, "--preset", "regions", "-o", config, *sizes)
    code, out, err = ras_dit(*call, "--cost", 0.6)
    assert code == 0, err
    assert "Plan: dense at 0-2" in out
    found = RASConfig.load(config)
    assert len(found.step_ratios) == 12
    assert len(found.forecast_fit) == 4 * 12
    code, _, err = ras_dit(*call, "--cost", 0.1)
    assert code == 2
    assert "cost: got 0.1, 1 dense evaluations of 12; allowed: at least 0." in err


def test_seeds_of_the_file_are_calibrated_with(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []

    def dense_run(*_: object, generator: list[torch.Generator], **__: object) -> None:
        seeds.extend(one.initial_seed() for one in generator)
        raise KeyboardInterrupt

    monkeypatch.setattr("ras_dit.calibration.DenseRun", dense_run)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a fox", "seed": 3}\n{"prompt": "a cat"}\n')
    words = ("calibrate", "-m", model, "--prompts-file", str(tmp_path / "prompts.jsonl"), "--seed", "40")
    assert main([*words, "-o", str(tmp_path / "fitted.json")]) == 130
    assert seeds == [3, 41]


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


def test_video_is_refused_before_anything_is_loaded(ras_dit: Run, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    code, _, err = ras_dit("demo", "-m", tmp_path / "model", "-o", tmp_path / "out.png")
    assert code == 2
    assert "is a WanPipeline, which makes video; this command is for pictures. Use ras-dit generate or compare" in err
    assert not (tmp_path / "out.png").exists()


def test_which_pipelines_make_video() -> None:
    for name in ("Wan", "WanVideoToVideo", "CogVideoX", "LTX", "Mochi", "Cosmos2VideoToWorld"):
        assert makes_video(getattr(diffusers, f"{name}Pipeline")), name
    for name in ("Flux", "StableDiffusion3", "Cosmos2TextToImage", "QwenImage", "PixArtSigma"):
        assert not makes_video(getattr(diffusers, f"{name}Pipeline")), name


@pytest.fixture
def video(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny Wan without text encoder, whatever model is asked for."""

    def load(*_: object, allows_video: bool, **__: object) -> Any:
        assert allows_video
        pipe = wan.build(vae=wan.tiny_vae())
        pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        pipe.encode_prompt = lambda prompt, **_: (torch.randn(len(prompt), 9, 24), torch.randn(len(prompt), 9, 24))
        return pipe

    monkeypatch.setattr("ras_dit.cli.pipelines.load_pipeline", load)


@pytest.mark.usefixtures("video")
def test_videos_are_calibrated_and_tuned(ras_dit: Run, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox\na cat\nan owl\na dog\n")
    sizes = ("--prompts-file", prompts, "--steps", 6, "--height", 32, "--width", 32, "--frames", 5)
    code, _, err = ras_dit("calibrate", "-m", "a/video", *sizes, "--preset", "fast", "-o", tmp_path / "fitted.json")
    assert code == 0, err
    assert len(RASConfig.load(tmp_path / "fitted.json").forecast_fit) == 4 * 6
    pytest.importorskip("optuna")
    search = ("--calibration", 2, "--validation", 2, "--trials", 11, "--plan-trials", 0, "--cost", "flops")
    code, _, err = ras_dit("tune", "-m", "a/video", *sizes, *search, "--max-cost", 0.9, "-o", tmp_path / "tune")
    assert code in (0, 3), err
    assert (tmp_path / "tune" / "tuned.report.json").is_file()
