"""The commands put together, and what happens when one fails: one line, a meaningful exit code."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated

import typer
from rich.console import Console

from ras_dit.cli.arena import arena
from ras_dit.cli.bench import bench
from ras_dit.cli.calibrate import calibrate
from ras_dit.cli.compare import compare
from ras_dit.cli.demo import demo
from ras_dit.cli.exits import EXIT_INTERRUPTED, EXIT_USAGE, MEANINGS
from ras_dit.cli.generate import generate
from ras_dit.cli.information import models, plan, presets
from ras_dit.cli.study import study_app
from ras_dit.cli.tune import tune
from ras_dit.errors import WeightsTooLargeError, is_out_of_memory


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from ras_dit import __version__

        print(f"ras-dit {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (anywhere on the line).")
    ] = False,
) -> None:
    """Region-Adaptive Sampling for diffusion transformers: compute only the regions the model is focusing on."""


def build_app() -> typer.Typer:
    """The application with all its commands."""
    app = typer.Typer(
        name="ras-dit", add_completion=False, epilog=MEANINGS, pretty_exceptions_enable=False, callback=_options
    )
    for command in (demo, generate, compare, arena, bench, calibrate, tune, plan, models, presets):
        app.command()(command)
    app.add_typer(study_app())
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; None takes those of the process.

    Returns:
        The exit code: 0 if all is done, 2 for a mistake in the call or something that is missing or too large here, 3
        for a verdict (`tune` missed its target, `bench` refused a figure), 130 when interrupted. An error of ours goes
        on as it is, with which Python leaves with 1.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    is_debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if words in ([], ["study"]):
        words.append("--help")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_notes()
            code = build_app()(words, prog_name="ras-dit", standalone_mode=False)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except Exception as error:
        message = _one_line(error)
        if is_debug or message is None:
            raise
        _to_stderr(f"ras-dit: error: {message}")
        return EXIT_USAGE
    if code == EXIT_INTERRUPTED:
        _to_stderr("ras-dit: interrupted; finished pictures are kept, nothing is half-written.")
    return int(code or 0)


def _one_line(error: Exception) -> str | None:
    """What to tell the caller about their mistake; None for an error that is not theirs."""
    from ras_dit.attention import UnsupportedAttentionError

    if hasattr(error, "format_message"):  # what typer raises for a bad flag; its class moved between versions
        text = str(error.format_message())
    elif isinstance(error, (ValueError, OSError, ImportError, UnsupportedAttentionError, WeightsTooLargeError)):
        text = str(error)
    elif is_out_of_memory(error):
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        text = f"out of memory: {first_line} {_advice(is_cpu=_is_of_cpu(error))}"
    else:
        return None
    return " ".join(text.split()) or type(error).__name__


def _is_of_cpu(error: Exception) -> bool:
    """Whether the memory that ran out is the computer's own, beside which there is none to move anything to."""
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error).lower()


def _advice(is_cpu: bool) -> str:
    """What to do when memory runs out; options of the config are called so, for not every command has their flags."""
    halves = "the config's kv_cache_dtype 'float8_e4m3fn' halves them"
    moves = "" if is_cpu else ", and its kv_cache_device 'cpu' moves them"
    offloads = (
        "or --dtype bfloat16."
        if is_cpu
        else "--dtype bfloat16, or --offload model, which leaves more room beside the weights, or --offload "
        "sequential, which leaves the most and is slow."
    )
    return (
        f"Presets 'quality', 'balanced' and 'fast' keep no keys and values; where they are kept, {halves}{moves}. Or "
        f"take a smaller picture, fewer at once, {offloads} `ras-dit plan` says how large the cache is."
    )


def _show_notes() -> Callable[..., None]:
    """What shows the library's warnings, each once, and no others."""
    said: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *place: object, **more: object) -> None:
        from ras_dit.remarks import RASWarning

        if issubclass(category, RASWarning) and str(message) not in said:
            said.add(str(message))
            _to_stderr(f"ras-dit: note: {message}")

    return show


def _to_stderr(text: str) -> None:
    Console(stderr=True, soft_wrap=True).print(text, markup=False, highlight=False)
