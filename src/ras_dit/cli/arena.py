"""`ras-dit arena`: many methods from the same noise, and what each makes of its compute."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ras_dit.cli import options
from ras_dit.files import FRAMES_PER_SECOND


def arena(
    suites: Annotated[
        str, typer.Option(help="all, dense, paper, baselines, caches, goals, midway, presets, options; with commas.")
    ] = "dense,paper,presets",
    only: Annotated[
        list[str] | None, typer.Option(help="A method of the suites by its name; several times for several.")
    ] = None,
    budget: Annotated[
        list[float] | None,
        typer.Option(
            help="Token-steps T, as 11.5: methods of the suites that take about as many, and step caches, of which "
            "only the run tells; several times for several."
        ),
    ] = None,
    config: Annotated[
        list[Path] | None,
        typer.Option("--config", "-c", help="A config file of yours that takes part; several times for several."),
    ] = None,
    lists: Annotated[bool, typer.Option("--list", help="Print the methods' names, and no more.")] = False,
    pictures: Annotated[int, typer.Option(help="How many, with the embedded model's own prompts.")] = 24,
    prompts_file: Annotated[
        Path | None, typer.Option(help="Prompts for other models: a .txt file (one a line) or .jsonl (prompt, seed).")
    ] = None,
    model: options.Model = "embedded",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder; what is there already is not painted again.")
    ] = (Path("outputs/arena")),
    steps: options.Steps = 28,
    converged_steps: Annotated[int, typer.Option(help="Steps of the converged run that all are compared with.")] = 200,
    guidance: options.Guidance = None,
    negative_prompt: options.Negative = None,
    true_cfg_scale: options.TrueCFG = None,
    height: options.Height = None,
    width: options.Width = None,
    frames: options.Frames = None,
    fps: options.FPS = FRAMES_PER_SECOND,
    batch: Annotated[int | None, typer.Option(help="Pictures per call; without it 8, of videos 1.")] = None,
    lpips_weights: options.LPIPSWeights = None,
    inception_weights: Annotated[
        Path | None, typer.Option(help="For FID, sFID, KID: torch-fidelity's file; in torch hub's cache without it.")
    ] = None,
    clip_model: Annotated[
        str | None, typer.Option(help="For CLIP score: a transformers folder, or a hub id that is in the cache.")
    ] = None,
    traces: Annotated[
        bool,
        typer.Option(
            "--traces",
            help="Keep which tokens RAS computed: a trace (JSON) beside every call that is painted from now on.",
        ),
    ] = False,
    real: Annotated[Path | None, typer.Option(help="Folder of real pictures, for FID, sFID and KID.")] = None,
    dtype: options.DType = "auto",
    device: options.Device = "auto",
    offload: options.Offload = "none",
) -> None:
    """Compare methods at equal compute: PSNR, SSIM, prompt accuracy, kernel and Frechet distance.

    LPIPS, FID, sFID, KID and CLIP score too, if their weights are at hand; nothing is downloaded. Videos are compared
    over all of their frames, and written as animated PNGs.

    With --steps other than 28 the plans fit themselves to that length and dense runs keep their share of it.
    Writes a JSON of all results, a table and, if matplotlib is installed, a Pareto plot.
    """
    from rich.console import Console

    from ras_dit.arena import Arena, Method, chosen, named_for, report, suite, within
    from ras_dit.arena.perceptual import Perceptual, Weights
    from ras_dit.arena.report import text
    from ras_dit.arena.run import converged_solver_of
    from ras_dit.cli.picture_checks import check_picture
    from ras_dit.cli.pictures import Picture, call_arguments, resolved
    from ras_dit.cli.pipelines import EMBEDDED, load_pipeline, makes_video
    from ras_dit.cli.places import check_folder
    from ras_dit.cli.plots import NO_PLOT, has_matplotlib
    from ras_dit.cli.progress import runs_progress
    from ras_dit.cli.scenes import read_scenes
    from ras_dit.config import RASConfig
    from ras_dit.pipeline import device_of
    from ras_dit.remarks import AdviceWarning

    warnings.simplefilter("ignore", AdviceWarning)  # the table has every method's time
    counts = {"--pictures": pictures, "--batch": batch, "--converged-steps": converged_steps, "--frames": frames}
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}: got {value}; allowed: at least 1.")
    check_folder("--output", output)
    methods = suite(suites, steps)
    if only:
        methods = chosen(methods, only)
    if budget:
        methods = within(methods, budget)
    methods += [Method(f"config {path.stem}", "ras", steps, config=RASConfig.load(path)) for path in config or ()]
    if lists:
        print("\n".join(method.name for method in methods))
        return
    weights = Weights(lpips_weights, inception_weights, clip_model, real)
    scenes = read_scenes(prompts_file, pictures, is_embedded=model in EMBEDDED)
    picture = Picture(
        prompt=scenes[0].prompt,
        seed=0,
        steps=steps,
        guidance=guidance,
        height=height,
        width=width,
        num_frames=frames,
        negative_prompt=negative_prompt,
        true_cfg_scale=true_cfg_scale,
    )
    pipe = load_pipeline(model, dtype, device, allows_video=True, offload=offload)
    picture = resolved(pipe, model, picture)
    check_picture(pipe, picture, None)  # all before the folder is claimed; a bad size is no method's mistake
    for method in methods:
        try:
            check_picture(pipe, replace(picture, steps=method.steps), method.config)
        except ValueError as error:
            raise ValueError(f"{method.name}: {error}") from error
    contest = Arena(
        folder=output,
        scenes=scenes,
        methods=named_for(methods, pipe.scheduler),
        call=call_arguments(pipe, picture),
        batch=batch or (1 if makes_video(type(pipe)) else 8),
        steps=steps,
        converged_steps=converged_steps,
        converged_solver=converged_solver_of(pipe),
        fps=fps,
        saves_traces=traces,
    )
    perceptual = Perceptual.load(weights, device_of(pipe))  # before painting: a wrong file should be known at once
    with runs_progress("painting", contest.num_calls) as advance:
        contest.run(pipe, advance)
    has_plot = has_matplotlib()
    result = report(contest, has_plot=has_plot, perceptual=perceptual)
    console = Console()
    console.print(text(result), markup=False, highlight=False, soft_wrap=True)
    files = "results.json, table.md and pareto.png" if has_plot else "results.json and table.md"
    console.print(f"Wrote {files} in {output}", markup=False, soft_wrap=True)
    if not has_plot:
        console.print(NO_PLOT, markup=False, soft_wrap=True)
