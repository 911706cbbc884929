"""`ras-dit compare`: dense and RAS from the same seed, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ras_dit.cli import options
from ras_dit.config import RASConfig
from ras_dit.files import FRAMES_PER_SECOND

if TYPE_CHECKING:
    from PIL import Image

    from ras_dit.cli.measure import Comparison


@options.with_config
def compare(
    prompt: options.Prompt,
    config: RASConfig,
    model: options.Model = "embedded",
    output: Annotated[Path, typer.Option("--output", "-o", help="The PNG to write.")] = Path("outputs/compare.png"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers to this file, too.")] = None,
    repeats: Annotated[int, typer.Option(help="Timed runs of each kind, in turns, after a warm-up.")] = 3,
    seed: options.Seed = 0,
    steps: options.Steps = 28,
    guidance: options.Guidance = None,
    height: options.Height = None,
    width: options.Width = None,
    frames: options.Frames = None,
    fps: options.FPS = FRAMES_PER_SECOND,
    negative_prompt: options.Negative = None,
    true_cfg_scale: options.TrueCFG = None,
    image: options.ImageFile = None,
    mask_image: options.MaskImage = None,
    control_image: options.ControlImage = None,
    strength: options.Strength = None,
    dtype: options.DType = "auto",
    device: options.Device = "auto",
    offload: options.Offload = "none",
) -> None:
    """Paint one prompt dense and with RAS from the same seed: one PNG with the heat map, times, PSNR and SSIM.

    Of a video the PNG is an animated one, without sound. Of layers there is one each, ...-layer0.png and so on.
    """
    from ras_dit.cli.call_checks import check_call
    from ras_dit.cli.measure import measure
    from ras_dit.cli.picture_checks import check_picture
    from ras_dit.cli.pictures import Picture, resolved
    from ras_dit.cli.pipelines import load_pipeline, makes_video
    from ras_dit.cli.places import check_file
    from ras_dit.cli.progress import runs_progress

    check_file("--output", output, ".png")
    check_file("--json", json_file)
    if repeats < 1:
        raise ValueError(f"--repeats: got {repeats}; allowed: at least 1.")
    picture = Picture(
        prompt=prompt,
        seed=seed,
        steps=steps,
        guidance=guidance,
        height=height,
        width=width,
        num_frames=frames,
        negative_prompt=negative_prompt,
        true_cfg_scale=true_cfg_scale,
        image=image,
        mask_image=mask_image,
        control_image=control_image,
        strength=strength,
    )

    def check(pipeline_class: Any) -> None:
        check_call(pipeline_class, picture.gives)

    pipe = load_pipeline(model, dtype, device, allows_video=True, check=check, offload=offload)
    asked = resolved(pipe, model, picture)
    check_picture(pipe, asked, config)
    with runs_progress("comparing", 2 * (repeats + 1)) as advance:
        result = measure(pipe, asked, config, repeats=repeats, on_run=advance)
    files = _save(result, config, model, output, json_file, fps, makes_video(type(pipe)))
    _print(result, files)


def _save(
    result: Comparison, config: RASConfig, model: str, output: Path, json_file: Path | None, fps: int, is_video: bool
) -> list[Path]:
    from ras_dit.cli.outputs import save_painted
    from ras_dit.files import save_text
    from ras_dit.versions import versions

    record = {"model": model, "config": config.to_dict(), "versions": versions(), **result.to_dict()}
    if json_file is not None:
        save_text(json.dumps(record, indent=2) + "\n", json_file)
    return save_painted(comparison_pictures(result, is_video), output, is_video, record, fps)


def comparison_pictures(result: Comparison, is_video: bool) -> list[Image.Image]:
    """Dense | RAS | heat map over the picture, with the numbers below: one picture, or one per frame or layer."""
    from ras_dit import viz
    from ras_dit.cli.measure import decibels, times
    from ras_dit.cli.outputs import painted_maps

    counts = result.trace.times_computed()[0]
    summary = result.summary
    span = f"{int(counts.min())} (dark) to {int(counts.max())} (bright) of {summary.num_steps} evaluations"
    notes = (f"{result.dense_median:.2f} s", f"{result.ras_median:.2f} s", span)
    caption = (
        f"{result.picture.prompt} (seed {result.picture.seed})",
        f"Measured speed-up {times(result.speedup)}, limit by FLOPs {times(summary.speedup_limit)}; "
        f"T = {summary.token_steps:.1f} token-steps instead of {summary.num_steps}; "
        f"PSNR {decibels(result.psnr)}, SSIM {result.ssim:.3f} against dense.",
    )
    maps = painted_maps(result.trace, result.accelerated, is_video)
    panels = zip(result.dense, result.accelerated, maps, strict=True)
    return [viz.comparison(*panel, notes=notes, caption=caption) for panel in panels]


def _print(result: Comparison, files: list[Path]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ras_dit.cli.measure import decibels, times

    summary = result.summary
    table = Table(title=Text(f"{result.picture.prompt} (seed {result.picture.seed})"), title_justify="left")
    for name in ("", "dense", "RAS"):
        table.add_column(name, justify="left" if not name else "right")
    table.add_row("time of the whole call, median", f"{result.dense_median:.3f} s", f"{result.ras_median:.3f} s")
    table.add_row("token-steps T", f"{summary.num_steps}", f"{summary.token_steps:.2f}")
    table.add_row("speed-up, measured", "1.00x", times(result.speedup))
    table.add_row("speed-up, predicted of the loop", "1.00x", times(summary.predicted_speedup))
    table.add_row("speed-up, limit by FLOPs of the transformer", "1.00x", times(summary.speedup_limit))
    table.add_row("PSNR against dense", "", decibels(result.psnr))
    table.add_row("SSIM against dense", "", f"{result.ssim:.4f}")
    console = Console()
    console.print(table)
    for note in (*summary.notes, *summary.advice):
        console.print(f"Note: {note}", markup=False)
    for file in files:
        console.print(f"Wrote {file}", markup=False, soft_wrap=True)
