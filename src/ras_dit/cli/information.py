"""Commands that paint nothing: `plan`, `models`, `presets`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ras_dit.cli import options
from ras_dit.config import RASConfig
from ras_dit.presets import PRESETS

if TYPE_CHECKING:
    from ras_dit.plan import Plan

BAR_WIDTH = 32


@options.with_config
def plan(
    config: RASConfig,
    model: options.Model = "embedded",
    steps: options.Steps = 28,
    height: options.Height = None,
    width: options.Width = None,
    frames: options.Frames = None,
    max_sequence_length: Annotated[
        int | None,
        typer.Option(help="Text tokens of a prompt, which count in the cost.  [default: the pipeline's; embedded: 1]"),
    ] = None,
    batch: Annotated[int, typer.Option(help="Pictures of one call; a batch gains more on small models.")] = 1,
    reference_tokens: Annotated[
        int,
        typer.Option(
            help="Tokens of reference pictures of an edit (FLUX.1 Kontext, Qwen-Image ...); one of the picture's own "
            "size has as many as that."
        ),
    ] = 0,
    guidance_rows: Annotated[
        int | None,
        typer.Option(
            help="Guidance rows of a picture, all calls of an evaluation together (2 with a negative prompt).  "
            "[default: as the pipeline guides unless told otherwise]"
        ),
    ] = None,
    dtype: options.DType = "auto",
    device: Annotated[
        str, typer.Option(help="To predict for: auto (this machine's), cpu or cuda, which need not be here.")
    ] = "auto",
) -> None:
    """Print what a run would compute, how much faster it is predicted to be, and at most. Loads no weights."""
    from ras_dit.cli.pipelines import EMBEDDED, pipeline_outline, resolve_device
    from ras_dit.embedded import MAX_SEQUENCE_LENGTH
    from ras_dit.engine import plan_for
    from ras_dit.models.sizes import check_count

    for flag, count, least in (
        ("--steps", steps, 1),
        ("--batch", batch, 1),
        ("--reference-tokens", reference_tokens, 0),
    ):
        check_count(flag, count, least=least)
    num_text = MAX_SEQUENCE_LENGTH if max_sequence_length is None and model in EMBEDDED else max_sequence_length
    if guidance_rows is not None:
        check_count("--guidance-rows", guidance_rows)
    if num_text is not None:
        check_count("--max-sequence-length", num_text)
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device: got {device!r}; allowed: auto, cpu, cuda (every GPU is predicted alike).")
    place = resolve_device("auto") if device == "auto" else device
    size = (height, width, num_text, frames, batch, reference_tokens, guidance_rows)
    outline = pipeline_outline(model, dtype, place)
    result = plan_for(outline, config, steps, *size, device=place)
    console = Console(highlight=False)
    console.print(_plan_table(result, f"{model}, {steps} steps"))
    kind = str(outline.transformer.dtype).removeprefix("torch.")
    about = f"Predicted for a {place} device, by constants of its kind; cache in {kind}."
    for line in [*_plan_lines(result), f"{about} --device and --dtype choose others."]:
        console.print(line, markup=False, soft_wrap=True)


def _plan_table(result: Plan, title: str) -> Table:
    table = Table(title=Text(title), title_justify="left")
    for name, side in (("step", "right"), ("kind", "left"), ("tokens", "right"), ("share", "right"), ("", "left")):
        table.add_column(name, justify="right" if side == "right" else "left", no_wrap=True)
    colours = {"dense": "bright_red", "region": "bright_green", "skip": "bright_black"}
    for step in result:
        share = step.num_active / result.num_tokens
        bar = "█" * max(round(BAR_WIDTH * share), int(share > 0))
        colour = colours[step.kind]
        table.add_row(
            str(step.index), f"[{colour}]{step.kind}[/]", f"{step.num_active}", f"{share:.1%}", f"[{colour}]{bar}[/]"
        )
    return table


def _plan_lines(result: Plan) -> list[str]:
    lines = [f"T = {result.token_steps:.2f} token-steps instead of {len(result)}; speed-up {result.described_speedup}."]
    if result.cost is not None:
        dense = result.cost.dense_flops * len(result)
        lines.append(
            f"{result.cost.total_flops / 1e9:,.1f} GFLOP instead of {dense / 1e9:,.1f} "
            f"({result.cost.total_flops / dense:.1%}) per image and guidance row (two with classifier-free guidance); "
            f"{result.cost.described_cache}."
        )
    return lines


def models() -> None:
    """Show the supported transformers and their pipelines."""
    from ras_dit.models import REFUSED, TOKEN_PLANS
    from ras_dit.models.table import layout_of, reuse_of

    table = Table(title="Supported transformers", title_justify="left", show_header=False, show_lines=True)
    table.add_column("transformer", no_wrap=True)
    table.add_column("about")
    for name, plan_ in TOKEN_PLANS.items():
        how = "together" if plan_.has_batched_positions else "one after the other"
        about = f"Attention over {layout_of(plan_)}; region steps compute the images of a batch {how}."
        lines = [plan_.family, about, "Pipelines:"]
        lines += [f"  {pipeline}" for pipeline in plan_.pipelines]
        lines += [f"Region steps can do without computing: {reuse_of(plan_)}."] * bool(reuse_of(plan_))
        table.add_row(name, "\n".join([*lines, *plan_.caveats]))
    for name, reason in REFUSED.items():
        table.add_row(name, f"Refused: {reason}")
    Console(highlight=False).print(table)


def presets() -> None:
    """Show the values of the presets."""
    from ras_dit.presets import described

    table = Table(title="Presets", title_justify="left")
    table.add_column("preset", no_wrap=True)
    table.add_column("options of 28 steps")
    defaults = RASConfig().to_dict()
    for name, preset in PRESETS.items():
        options = preset.to_dict()
        words = [described(preset.step_ratios)]
        words += [f"{option} {value}" for option, value in options.items() if value != defaults[option]]
        table.add_row(name, ", ".join(word for word in words if not word.startswith("step_ratios")))
    console = Console(highlight=False)
    console.print(table)
    console.print(
        "Options that are not listed have their defaults; plans are stretched or shrunk to runs of other lengths."
    )
