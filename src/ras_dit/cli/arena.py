"""`ras-dit arena`: many methods from the same noise, and what each makes of its compute."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ras_dit.cli import options


def arena(
    suites: Annotated[
        str, typer.Option(help="all, dense, paper, baselines, caches, goals, presets, options; several with commas.")
    ] = "dense,paper,presets",
    pictures: Annotated[int, typer.Option(help="How many, with the embedded model's own prompts.")] = 24,
    prompts_file: Annotated[
        Path | None, typer.Option(help="Prompts for other models: a .txt file (one a line) or .jsonl.")
    ] = None,
    model: options.Model = "embedded",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder; what is there already is not painted again.")
    ] = (Path("outputs/arena")),
    steps: options.Steps = 28,
    converged_steps: Annotated[int, typer.Option(help="Steps of the converged run that all are compared with.")] = 200,
    guidance: options.Guidance = None,
    height: options.Height = None,
    width: options.Width = None,
    batch: Annotated[int, typer.Option(help="Pictures per call.")] = 8,
    dtype: options.DType = "auto",
    device: options.Device = "auto",
) -> None:
    """Compare methods at equal compute: PSNR, SSIM, prompt accuracy, Frechet distance (from 100 pictures on).

    Writes a JSON of all results, a table and a Pareto plot.
    """
    from rich.console import Console

    from ras_dit.arena import Arena, report, suite
    from ras_dit.arena.report import failed, table
    from ras_dit.cli.pipelines import EMBEDDED, Picture, call_arguments, load_pipeline, resolved
    from ras_dit.cli.progress import runs_progress
    from ras_dit.cli.scenes import read_scenes

    for name, value in (("--pictures", pictures), ("--batch", batch), ("--converged-steps", converged_steps)):
        if value < 1:
            raise ValueError(f"{name}: got {value}; allowed: at least 1.")
    methods = suite(suites)
    scenes = read_scenes(prompts_file, pictures, is_embedded=model == EMBEDDED)
    pipe = load_pipeline(model, dtype, device)
    picture = resolved(pipe, model, Picture(scenes[0].prompt, 0, steps, guidance, height, width))
    contest = Arena(output, scenes, methods, call_arguments(pipe, picture), batch, steps, converged_steps)
    with runs_progress("painting", contest.num_calls) as advance:
        contest.run(pipe, advance)
    result = report(contest)
    console = Console()
    console.print(table(result["rows"]) + failed(result["failures"]), markup=False, highlight=False, soft_wrap=True)
    console.print(f"Wrote results.json, table.md and pareto.png in {output}", markup=False, soft_wrap=True)
