"""`ras-dit tune`: the best config for a pipeline and a target, as a preset."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ras_dit.cli import options
from ras_dit.cli.exits import EXIT_VERDICT

if TYPE_CHECKING:
    from ras_dit.arena import Scene
    from ras_dit.tune import Metric

FIRST_SEED = 5000
"""Of prompts without a seed of their own. Far from those of the arena, which is to judge a config by other pictures."""
TARGET, PICTURES, SEARCH = "Target", "Pictures", "Search"


def tune(
    min_psnr: Annotated[
        float | None, typer.Option(help="Floor in dB; then the cost is made small.", rich_help_panel=TARGET)
    ] = None,
    min_ssim: Annotated[
        float | None, typer.Option(help="Floor; several floors all hold.", rich_help_panel=TARGET)
    ] = None,
    max_lpips: Annotated[
        float | None, typer.Option(help="The most of this distance; needs its weights.", rich_help_panel=TARGET)
    ] = None,
    lpips_weights: Annotated[
        Path | None,
        typer.Option(
            help="For LPIPS: torchvision's VGG16 or AlexNet; in torch hub's cache without it.", rich_help_panel=TARGET
        ),
    ] = None,
    max_cost: Annotated[
        float | None,
        typer.Option(help="Budget, a share of the dense run's; then the quality is made good.", rich_help_panel=TARGET),
    ] = None,
    cost: Annotated[
        str,
        typer.Option(
            help="time (measured beside dense runs), flops or token_steps (counted, the same every time).",
            rich_help_panel=TARGET,
        ),
    ] = "time",
    maximise: Annotated[
        str, typer.Option(help="What a budget is spent on: psnr, ssim or lpips.", rich_help_panel=TARGET)
    ] = "psnr",
    quantile: Annotated[
        float | None,
        typer.Option(
            help="0.1: all but the worst tenth of the pictures reach the floor, instead of their mean.",
            rich_help_panel=TARGET,
        ),
    ] = None,
    reference: Annotated[
        str,
        typer.Option(
            help="Compare with dense (the same picture sooner) or converged (the right picture).",
            rich_help_panel=TARGET,
        ),
    ] = "dense",
    converged_steps: Annotated[int, typer.Option(help="Steps of the converged run.", rich_help_panel=TARGET)] = 200,
    calibration: Annotated[int, typer.Option(help="Prompts to search on.", rich_help_panel=PICTURES)] = 8,
    validation: Annotated[int, typer.Option(help="Other prompts to check on.", rich_help_panel=PICTURES)] = 16,
    prompts_file: Annotated[
        Path | None,
        typer.Option(
            help="Prompts for other models, those for calibration first: .txt (one a line) or .jsonl (prompt, seed).",
            rich_help_panel=PICTURES,
        ),
    ] = None,
    model: options.Model = "embedded",
    steps: options.Steps = 28,
    guidance: options.Guidance = None,
    negative_prompt: options.Negative = None,
    true_cfg_scale: options.TrueCFG = None,
    height: options.Height = None,
    width: options.Width = None,
    frames: options.Frames = None,
    batch: Annotated[int, typer.Option(help="Pictures per call, as you will call it.", rich_help_panel=PICTURES)] = 1,
    trials: Annotated[int, typer.Option(help="Configs to try in all, known ones first.", rich_help_panel=SEARCH)] = 60,
    plan_trials: Annotated[
        int, typer.Option(help="Changed plans to try after that, in all; 0 for none.", rich_help_panel=SEARCH)
    ] = 20,
    without: Annotated[
        str,
        typer.Option(
            help="Options not to search, with commas (kv_forecast doubles the cache).", rich_help_panel=SEARCH
        ),
    ] = "",
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            help="A config file to start from; it has all that is not searched.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", "-s", help="Of the search.", rich_help_panel=SEARCH)] = 0,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder; a tuning that was begun there goes on.")
    ] = Path("outputs/tune"),
    name: Annotated[str, typer.Option(help="Of the preset NAME.json, beside NAME.report.json and NAME.png.")] = "tuned",
    dtype: options.DType = "auto",
    device: options.Device = "auto",
    offload: options.Offload = "none",
) -> None:
    """Find the cheapest config that is good enough, or the best one within a budget; write it as a preset.

    Configs are searched on a few prompts and checked on others. Leaves with 3 if the target was missed there.
    """
    from rich.console import Console

    from ras_dit.cli.picture_checks import check_picture
    from ras_dit.cli.pictures import Picture, call_arguments, resolved
    from ras_dit.cli.pipelines import EMBEDDED, load_pipeline, resolve_device
    from ras_dit.cli.places import check_folder
    from ras_dit.cli.plots import NO_PLOT, has_matplotlib
    from ras_dit.cli.progress import described_progress
    from ras_dit.config import RASConfig
    from ras_dit.remarks import AdviceWarning
    from ras_dit.tune import Floor, Target, Tuning, write_report
    from ras_dit.tune.report import check_name, preset_path
    from ras_dit.tune.search import load_optuna

    warnings.simplefilter("ignore", AdviceWarning)  # every config's cost is measured, or counted as asked
    load_optuna()
    check_folder("--output", output)
    check_name(name)
    bounds = {"psnr": min_psnr, "ssim": min_ssim, "lpips": max_lpips}
    metrics = _metrics(max_lpips is not None or maximise == "lpips", lpips_weights, resolve_device(device))
    if maximise not in metrics:
        raise ValueError(f"--maximise: got {maximise!r}; allowed: psnr, ssim, lpips.")
    floors = tuple(Floor(metrics[name], bound) for name, bound in bounds.items() if bound is not None)
    target = Target(floors, max_cost, cost, metrics[maximise], quantile)  # type: ignore[arg-type]
    first, second = _scenes(prompts_file, calibration, validation, model in EMBEDDED, output)
    base = RASConfig() if config is None else RASConfig.load(config)
    if frames is not None and frames < 1:
        raise ValueError(f"--frames: got {frames}; allowed: at least 1.")
    picture = Picture(
        prompt=first[0].prompt,
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
    check_picture(pipe, picture, base)
    tuning = Tuning(
        folder=output,
        target=target,
        calibration=first,
        validation=second,
        call=call_arguments(pipe, picture),
        steps=steps,
        reference=reference,  # type: ignore[arg-type]
        converged_steps=converged_steps,
        batch=batch,
        seed=seed,
        base=base,
        without=frozenset(word.strip() for word in without.split(",") if word.strip()),
        model=model,
        offload=offload,
    )
    outcome = tuning.run(pipe, trials, plan_trials, described_progress)
    result = write_report(tuning, outcome, name, has_plot=has_matplotlib())
    console = Console(soft_wrap=True, highlight=False)
    console.print("\n".join(result["summary"]), markup=False)
    if not has_matplotlib():
        console.print(NO_PLOT, markup=False)
    if outcome.verdict.chosen is None:
        raise typer.Exit(EXIT_VERDICT)
    console.print(
        f"Wrote {preset_path(tuning, name)}: ras_dit.enable(pipe, {str(preset_path(tuning, name))!r})", markup=False
    )


def _metrics(needs_lpips: bool, lpips_weights: Path | None, device: str) -> dict[str, Metric]:
    from ras_dit.arena.perceptual import Perceptual
    from ras_dit.tune import PSNR, SSIM, lpips

    if lpips_weights is not None and not needs_lpips:
        raise ValueError(f"--lpips-weights: got {str(lpips_weights)!r} without --max-lpips or --maximise lpips.")
    found = {"psnr": PSNR, "ssim": SSIM}
    return found | {"lpips": lpips(Perceptual.load_lpips(lpips_weights, device))} if needs_lpips else found


def _scenes(
    prompts_file: Path | None, calibration: int, validation: int, is_embedded: bool, folder: Path
) -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    from ras_dit.cli.scenes import read_scenes
    from ras_dit.tune.tuning import scenes_of

    for flag, count in (("--calibration", calibration), ("--validation", validation)):
        if count < 2:
            raise ValueError(f"{flag}: got {count}; allowed: at least 2.")
    count = calibration + validation
    scenes = read_scenes(prompts_file, count, is_embedded, FIRST_SEED)
    if len(scenes) < count:
        raise ValueError(
            f"--prompts-file: got {len(scenes)} prompts; allowed: at least {count}, {calibration} "
            f"for --calibration and {validation} others for --validation."
        )
    of_before, begun = read_scenes(prompts_file, count, is_embedded), scenes_of(folder)
    if any(scene in begun for scene in of_before if scene not in scenes):
        scenes = of_before  # a folder that was begun with the seeds of the arena goes on with them
    return tuple(scenes[:calibration]), tuple(scenes[calibration:count])
