"""`ras-dit calibrate`: fit a config's forecast, and its plan if asked for, to dense runs of a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ras_dit.cli import options
from ras_dit.config import RASConfig

FIRST_SEED = 9000
"""Far from the seeds of the arena and of tuning, whose pictures are to judge by."""


@options.with_config
def calibrate(
    config: RASConfig,
    model: options.Model = "embedded",
    output: Annotated[Path, typer.Option("--output", "-o", help="The config to write: .json or .yaml.")] = Path(
        "outputs/calibrated.json"
    ),
    pictures: Annotated[int, typer.Option(help="How many, with the embedded model's own prompts, in one call.")] = 8,
    prompts_file: Annotated[
        Path | None,
        typer.Option(help="Prompts for other models, all in one call: .txt (one a line) or .jsonl (prompt, seed)."),
    ] = None,
    cost: Annotated[
        float | None,
        typer.Option(help="Find the plan, too: the one nearest to dense runs for this share of their FLOPs."),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", "-s", help="Of the first picture; the others count on, but for seeds of the file.")
    ] = FIRST_SEED,
    steps: options.Steps = 28,
    guidance: options.Guidance = None,
    negative_prompt: options.Negative = None,
    true_cfg_scale: options.TrueCFG = None,
    height: options.Height = None,
    width: options.Width = None,
    frames: options.Frames = None,
    dtype: options.DType = "auto",
    device: options.Device = "auto",
    offload: options.Offload = "none",
) -> None:
    """Fit the forecast of a preset or config to dense runs of a model, and write it as a config.

    Paints some pictures twice, dense and by the config. The result is for this model, plan, number of steps and
    guidance: `ras-dit generate --config outputs/calibrated.json`. With --cost the plan is found first (eight to
    thirteen more runs, and a minute or so of searching): with regions if the config has any, as --preset regions.
    """
    import warnings

    from rich.console import Console

    from ras_dit.arena.run import arguments_for
    from ras_dit.calibration import DenseRun, check_fittable
    from ras_dit.cli.picture_checks import check_picture
    from ras_dit.cli.pictures import Picture, call_arguments, resolved
    from ras_dit.cli.pipelines import EMBEDDED, load_pipeline
    from ras_dit.cli.places import check_file
    from ras_dit.cli.progress import runs_progress
    from ras_dit.cli.scenes import read_scenes
    from ras_dit.plan_search import NUM_TICKS, check_cost, find_plan
    from ras_dit.presets import described
    from ras_dit.remarks import AdviceWarning

    warnings.simplefilter("ignore", AdviceWarning)  # `ras-dit plan` is there to ask for it
    check_file("--output", output, ".json", ".yaml", ".yml")
    if pictures < 1:
        raise ValueError(f"--pictures: got {pictures}; allowed: at least 1.")
    if cost is None:
        check_fittable(config)
    else:
        check_cost(cost)
    scenes = read_scenes(prompts_file, pictures, is_embedded=model in EMBEDDED, first_seed=seed)
    if frames is not None and frames < 1:
        raise ValueError(f"--frames: got {frames}; allowed: at least 1.")
    picture = Picture(
        prompt=scenes[0].prompt,
        seed=seed,
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
    check_picture(pipe, picture, config if cost is None else None)  # with a cost, its plan is found
    asked = call_arguments(pipe, picture)

    def call() -> dict[str, Any]:
        return arguments_for(scenes, steps, asked)

    with runs_progress("fitting", 2 if cost is None else 2 + NUM_TICKS) as advance:
        if cost is not None:
            config = find_plan(pipe, cost, config, on_progress=advance, **call())
        dense = DenseRun(pipe, config.solver_order, **call())
        advance()
        fitted = dense.fit(config)
        advance()
    fitted.save(output)
    console = Console()
    if cost is not None:
        console.print(f"Plan: {described(config.step_ratios)}.", markup=False, soft_wrap=True)
    console.print(f"Fitted to {len(scenes)} pictures of {steps} steps. Wrote {output}", markup=False, soft_wrap=True)
