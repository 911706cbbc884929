"""The commands put together, and what happens when one fails: one line, a meaningful exit code."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from ras_dit.cli.arena import arena
from ras_dit.cli.bench import bench
from ras_dit.cli.calibrate import calibrate
from ras_dit.cli.compare import compare
from ras_dit.cli.demo import demo
from ras_dit.cli.exits import EXIT_INTERRUPTED, EXIT_USAGE, MEANINGS
from ras_dit.cli.generate import generate
from ras_dit.cli.information import models, plan, presets
from ras_dit.cli.messages import one_line, to_stderr
from ras_dit.cli.metrics import metrics
from ras_dit.cli.study import study_app
from ras_dit.cli.tune import tune


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
    for command in (demo, generate, compare, metrics, arena, bench, calibrate, tune, plan, models, presets):
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
        message = one_line(error)
        if is_debug or message is None:
            raise
        to_stderr(f"ras-dit: error: {message}")
        return EXIT_USAGE
    if code == EXIT_INTERRUPTED:
        to_stderr("ras-dit: interrupted; finished pictures are kept, nothing is half-written.")
    return int(code or 0)


def _show_notes() -> Callable[..., None]:
    """What shows the library's warnings, each once, and no others."""
    said: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *place: object, **more: object) -> None:
        from ras_dit.remarks import RASWarning

        if issubclass(category, RASWarning) and str(message) not in said:
            said.add(str(message))
            to_stderr(f"ras-dit: note: {message}")

    return show
