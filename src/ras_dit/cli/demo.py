"""`ras-dit demo`: the model in the box, dense and with RAS from the same seeds."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ras_dit.cli import options
from ras_dit.config import RASConfig

if TYPE_CHECKING:
    from PIL import Image

    from ras_dit.cli.measure import Comparison

    Results = dict[str, list[Comparison]]


def demo(
    presets: Annotated[
        str,
        typer.Option(
            "--preset",
            "-p",
            help="quality, balanced, fast, regions, regions_fast, regions_faster; several with commas.",
        ),
    ] = "balanced,regions",
    num_prompts: Annotated[int, typer.Option(help="Prompts to paint.")] = 4,
    seed: options.Seed = 4,
    steps: options.Steps = 28,
    model: options.Model = "embedded",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The sheet to write; single pictures go beside it.")
    ] = Path("outputs/demo.png"),
    dtype: options.DType = "auto",
    device: options.Device = "auto",
    offload: options.Offload = "none",
) -> None:
    """Paint a few prompts dense and with RAS: one sheet with the map of where the compute went, and a table."""
    from ras_dit.cli.measure import measure
    from ras_dit.cli.picture_checks import check_picture
    from ras_dit.cli.pictures import Picture, paint, resolved
    from ras_dit.cli.pipelines import load_pipeline
    from ras_dit.cli.places import check_file, check_folder
    from ras_dit.cli.progress import runs_progress
    from ras_dit.embedded import embedded_prompts
    from ras_dit.engine import accelerate

    configs = {name.strip(): RASConfig.preset(name.strip()) for name in presets.split(",")}
    if num_prompts < 1:
        raise ValueError(f"--num-prompts: got {num_prompts}; allowed: at least 1.")
    check_file("--output", output, ".png")
    check_folder("--output", output.with_suffix(""))
    pictures = [Picture(prompt, seed + number, steps) for number, prompt in enumerate(embedded_prompts(num_prompts))]
    pipe = load_pipeline(model, dtype, device, offload=offload)
    pictures = [resolved(pipe, model, picture) for picture in pictures]
    for config in configs.values():
        check_picture(pipe, pictures[0], config)
    with runs_progress("painting dense and with RAS", (1 + 2 * len(pictures)) * len(configs) + 1) as advance:
        paint(pipe, pictures[0])
        advance()
        results = {}
        for name, config in configs.items():
            with accelerate(pipe, config):
                paint(pipe, pictures[0])
            advance()
            results[name] = [measure(pipe, p, config, repeats=1, warm_up=False, on_run=advance) for p in pictures]
    folder = _save(results, output)
    _print(results, output, folder)


def _save(results: Results, output: Path) -> Path:
    from ras_dit.files import save_png

    folder = output.with_suffix("")
    for preset, comparisons in results.items():
        for number, result in enumerate(comparisons):
            about = {"preset": preset, **result.to_dict()}
            save_png(result.dense, folder / f"{number}_dense.png", about)
            save_png(result.accelerated, folder / f"{number}_{preset}.png", about)
            save_png(result.trace.heatmap(result.accelerated[0]), folder / f"{number}_{preset}_heatmap.png", about)
    save_png(demo_sheet(results), output)
    return folder


def demo_sheet(results: Results) -> Image.Image:
    """Rows of dense pictures, a row of pictures per preset, and where that computed regions their heat maps."""
    from ras_dit import viz
    from ras_dit.cli.measure import decibels, times

    first = next(iter(results.values()))
    rows = [[(r.dense[0], f"{r.picture.prompt}\ndense, {r.dense_median:.2f} s") for r in first]]
    about = []
    for preset, comparisons in results.items():
        rows.append(
            [
                (
                    r.accelerated[0],
                    f"{preset}, {r.ras_median:.2f} s ({times(r.speedup)})\nPSNR {decibels(r.psnr)}, SSIM {r.ssim:.3f}",
                )
                for r in comparisons
            ]
        )
        if any(step.kind == "region" for step in comparisons[0].trace.steps):
            rows.append([_heatmap(r) for r in comparisons])
        summary = comparisons[0].summary
        about.append(
            f"{preset}: T = {summary.token_steps:.1f} token-steps instead of {summary.num_steps}, limit by FLOPs "
            f"{times(summary.speedup_limit)}."
        )
    footer = " ".join(about) + (
        " RAS is lossy: what is not computed is forecast. Times are of the whole call, one run each."
    )
    pictures, labels = zip(*(cell for row in rows for cell in row), strict=True)
    return viz.contact_sheet(pictures, len(first), labels, title="ras-dit demo", footer=footer)


def _heatmap(result: Comparison) -> tuple[Image.Image, str]:
    counts = result.trace.times_computed()[0]
    span = f"{int(counts.min())} to {int(counts.max())} of {result.summary.num_steps} times"
    return result.trace.heatmap(result.accelerated[0]), f"where the compute went:\n{span}, brighter is more"


def _print(results: Results, output: Path, folder: Path) -> None:
    from ras_dit.cli.measure import decibels, times

    console = Console(highlight=False, soft_wrap=True)
    for preset, comparisons in results.items():
        table = Table(title=f"Dense and RAS (preset {preset}) from the same seeds", title_justify="left")
        for name in ("prompt", "dense", "RAS", "speed-up", "limit", "T", "PSNR", "SSIM"):
            table.add_column(name, justify="left" if name == "prompt" else "right", no_wrap=name != "prompt")
        for r in comparisons:
            steps = f"{r.summary.token_steps:.1f} of {r.summary.num_steps}"
            limit = times(r.summary.speedup_limit)
            cells = (f"{r.dense_median:.2f} s", f"{r.ras_median:.2f} s", times(r.speedup), limit, steps)
            table.add_row(r.picture.prompt, *cells, decibels(r.psnr), f"{r.ssim:.3f}")
        dense = statistics.median(r.dense_median for r in comparisons)
        ras = statistics.median(r.ras_median for r in comparisons)
        table.add_section()
        table.add_row("median", f"{dense:.2f} s", f"{ras:.2f} s", times(dense / ras), "", "", "", "")
        console.print(table)
    for note in dict.fromkeys(
        note for comparisons in results.values() for r in comparisons for note in r.summary.notes
    ):
        console.print(f"Note: {note}", markup=False)
    console.print(
        "RAS is lossy: tokens that are not computed are forecast, and the picture differs from the dense one by what "
        "PSNR and SSIM say.\nTimes are of the whole call, one run each, measured just now: text encoders and decoder "
        "included, and whatever else this machine was doing. The limit counts the transformer's FLOPs alone. Fixed "
        "costs weigh heavily in pictures as small as these.",
        markup=False,
    )
    console.print(f"Sheet: {output}\nSingle pictures: {folder}", markup=False)
