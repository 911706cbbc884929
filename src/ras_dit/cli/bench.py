"""`ras-dit bench`: how fast, against the limit by FLOPs, on models by their dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ras_dit.cli import options
from ras_dit.cli.exits import EXIT_VERDICT

if TYPE_CHECKING:
    from rich.console import Console

    from ras_dit.bench import Results
    from ras_dit.bench.cases import Case


def bench(
    case: Annotated[list[str] | None, typer.Option(help="A case by name; several times for several.")] = None,
    eager: Annotated[bool, typer.Option(help="Blocks as they are.")] = True,
    compiled: Annotated[
        bool | None, typer.Option(help="Blocks under torch.compile(fullgraph=True); on by default on a GPU.")
    ] = None,
    reduce_overhead: Annotated[
        bool | None, typer.Option(help="And in torch.compile's mode with CUDA graphs; on by default on a GPU.")
    ] = None,
    ratios: Annotated[str | None, typer.Option(help="Shares of tokens, with commas, such as 1,0.5,0.25.")] = None,
    presets: Annotated[
        str | None, typer.Option(help="Presets, with commas, such as balanced,fast; with --ratios or without.")
    ] = None,
    loops: Annotated[bool, typer.Option(help="Whole loops; --no-loops measures picture sizes alone.")] = True,
    crossover: Annotated[bool, typer.Option(help="Also picture sizes against ratios.")] = False,
    sizes: Annotated[
        str | None, typer.Option(help="Of the crossover, with commas: 512,768x1024 (height first),480x832x33 (frames).")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Of whole loops, instead of the case's own: 512, 768x1024 or 480x832x33.")
    ] = None,
    depth: Annotated[
        float | None, typer.Option(help="Share of the blocks, for a machine that the whole model does not fit: 0.1.")
    ] = None,
    repeats: Annotated[int | None, typer.Option(help="Timed loops of each kind; the case's own without it.")] = None,
    steps: Annotated[int | None, typer.Option(help="Evaluations; the case's own without it.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="bfloat16, float16 or float32, instead of the case's own (bfloat16).")
    ] = None,
    tiny: Annotated[
        bool, typer.Option(help="The same architectures at toy size, as mid-tiny, to try the command.")
    ] = False,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="JSON; parts that are finished in it are not measured again.")
    ] = Path("outputs/bench.json"),
    plot: Annotated[Path | None, typer.Option(help="A picture of the results, .png.")] = None,
    backend: Annotated[str, typer.Option(help="Of torch.compile.")] = "inductor",
    device: options.Device = "auto",
    list_cases: Annotated[bool, typer.Option("--list", help="Print the cases and leave.")] = False,
) -> None:
    """Time dense and RAS loops in turns, beside the limit by FLOPs, with peak memory and where the time goes.

    Models are built from their published dimensions with random weights: nothing is downloaded. No figure is given
    unless, in the same process, region steps over fresh keys equal dense ones and compiled blocks equal eager ones.
    Leaves with 3 if a figure was refused, and says which and why.
    """
    from rich.console import Console

    from ras_dit.bench import Benchmark, Results, Settings, chosen_cases, environment
    from ras_dit.cli.pipelines import resolve_device
    from ras_dit.cli.places import check_file
    from ras_dit.cli.plots import has_matplotlib
    from ras_dit.cli.progress import described_progress

    console = Console(highlight=False)
    if list_cases:
        _print_cases(console)
        return
    check_file("--output", output)
    check_file("--plot", plot, ".png")
    if plot is not None and not has_matplotlib():
        raise ValueError("--plot: it needs matplotlib; `pip install '.[arena]'` in the checkout, or leave --plot out.")
    where = resolve_device(device)
    modes = _modes(eager, compiled, reduce_overhead, where)
    for flag, count in (("--repeats", repeats), ("--steps", steps)):
        if count is not None and count < 1:
            raise ValueError(f"{flag}: got {count}; allowed: at least 1.")
    for flag, value in (("--dtype", dtype), ("--size", size), ("--depth", depth)):
        if tiny and value is not None:
            raise ValueError(f"{flag}: got it with --tiny, whose models have toy sizes, in float32; leave one out.")
    chosen = chosen_cases(tuple(case or ()), where, dtype, size, depth)
    chosen = [one.tiny() for one in chosen] if tiny else chosen
    settings = Settings(
        device=where,
        modes=modes,
        ratios=None if ratios is None else _ratios(ratios),
        presets=None if presets is None else tuple(word.strip() for word in presets.split(",")),
        sizes=None if sizes is None else _sizes(sizes),
        repeats=repeats,
        num_steps=steps,
        has_crossover=crossover or sizes is not None or not loops,
        has_loops=loops,
        backend=backend,
    )
    chosen = settings.with_parts(chosen, is_named=bool(case))
    speak = Console(stderr=True, highlight=False, soft_wrap=True)
    with Results.opened(output, environment(where)) as results:
        benchmark = Benchmark(settings, results, described_progress, lambda text: speak.print(text, markup=False))
        try:
            is_green = benchmark.run(chosen)
        finally:
            _show(results, chosen, output, plot, console, speak)
    if not is_green:
        raise typer.Exit(EXIT_VERDICT)


def _show(
    results: Results, chosen: Sequence[Case], output: Path, plot: Path | None, console: Console, speak: Console
) -> None:
    """Print what is there of the cases, and draw it."""
    from ras_dit.bench.report import plot as draw
    from ras_dit.bench.report import profile_lines, tables

    shown = {one.name: results.cases[one.name] for one in chosen if one.name in results.cases}
    for table in tables(shown):
        console.print(table, markup=False, soft_wrap=isinstance(table, str))
    for name, found in shown.items():
        for line in profile_lines(found):
            console.print(f"{name}, {line}", markup=False, soft_wrap=True)
    written = [str(output)] if results.is_written else []
    if plot is not None and draw(shown, plot):
        written.append(str(plot))
    elif plot is not None:
        speak.print(f"--plot: there are no figures, and so no {plot}.", markup=False)
    if written:
        console.print(f"Wrote {' and '.join(written)}", markup=False, soft_wrap=True)


def _modes(eager: bool, compiled: bool | None, reduce_overhead: bool | None, device: str) -> tuple[str, ...]:
    is_gpu = device.startswith("cuda")
    wanted = {
        "eager": eager,
        "compiled": is_gpu if compiled is None else compiled,
        "reduce-overhead": is_gpu if reduce_overhead is None else reduce_overhead,
    }
    if not any(wanted.values()):
        raise ValueError("--no-eager: got no mode at all; give --compiled or leave --no-eager out.")
    return tuple(mode for mode, is_wanted in wanted.items() if is_wanted)


def _ratios(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(word) for word in text.split(",") if word.strip())
    except ValueError:
        found = ()
    if not found or not all(0 < ratio <= 1 for ratio in found):
        raise ValueError(f"--ratios: got {text!r}; allowed: numbers above 0 and up to 1, with commas.")
    return found


def _sizes(text: str) -> tuple[str, ...]:
    from ras_dit.bench.architectures import Size

    found = tuple(word.strip() for word in text.split(","))
    for word in found:
        Size.parse(word, default=Size(1, 1))
    return found


def _print_cases(console: Console) -> None:
    from ras_dit.bench import CASES

    for one in CASES.values():
        source = one.dimensions.source if one.dimensions else "ships with the package"
        console.print(f"{one.name}: {one.title}", markup=False)
        console.print(f"    {one.schedule.num_steps} steps; {one.guidance}; {source}", markup=False, soft_wrap=True)
