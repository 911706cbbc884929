"""`ras-dit study`: a blind comparison by people: build the page, collect votes, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from ras_dit.study import Ballot, Results

FOLDER = Path("outputs/study")
LARGE_PAGE = 50 * 1024 * 1024  # bytes; phones struggle above
PORT = 8765


def study_app() -> typer.Typer:
    """The commands of a study."""
    app = typer.Typer(name="study", help="Let people compare: a blind page, votes, a report.")
    for command in (build, serve, report):
        app.command()(command)
    return app


def build(
    folder: Annotated[
        Path, typer.Argument(help="Holds the two folders of pictures or videos; an arena's folder does.")
    ],
    ours: Annotated[str, typer.Option(help="Folder in it (or anywhere) under test; in an arena a method.")] = "ras",
    against: Annotated[str, typer.Option(help="Folder (or method) that it is compared with.")] = "dense",
    output: Annotated[Path, typer.Option("--output", "-o", help="Where study.html and key.json go.")] = FOLDER,
    question: Annotated[
        str | None, typer.Option(help="What voters are asked; without it which picture (or video) is better.")
    ] = None,
    prompts_file: Annotated[
        Path | None, typer.Option(help="A prompt for each pair, by file name; without it those that are known.")
    ] = None,
    hide_prompts: Annotated[bool, typer.Option("--hide-prompts", help="Show pictures or videos only.")] = False,
    num_pairs: Annotated[int | None, typer.Option(help="Take so many pairs, by chance; all without it.")] = None,
    num_repeats: Annotated[int, typer.Option(help="Pairs that come a second time, sides swapped.")] = 0,
    num_catches: Annotated[int, typer.Option(help="Screens that show one picture or video twice.")] = 0,
    max_side: Annotated[
        int | None, typer.Option(help="Scale larger pictures and videos down to so many pixels.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="To draw the same study again. Voters must not know it.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace another study; its key and votes are moved aside.")
    ] = False,
) -> None:
    """Build a page for blind votes from pairs of pictures, or of videos (animated PNG or WebP).

    Files of equal names are a pair, or PNGs by `ras-dit generate` of one prompt, seed and size. Two videos have as many
    frames, and show each as long.
    """
    from ras_dit.cli.places import check_folder
    from ras_dit.cli.progress import runs_progress
    from ras_dit.cli.prompts import read_prompts
    from ras_dit.study import StudyConfig, build_study, find_pairs
    from ras_dit.study.build import KEY, PAGE

    check_folder("--output", output)
    config = StudyConfig(
        question,
        num_pairs,
        num_repeats,
        num_catches,
        seed,
        max_side,
        not hide_prompts,
    )
    prompts = None if prompts_file is None else [entry["prompt"] for entry in read_prompts(prompts_file)]
    pairs = find_pairs(folder, ours, against, prompts)
    with runs_progress("reading pairs", num_pairs or len(pairs)) as advance:
        study = build_study(pairs, ours, against, config, advance)
    moved = study.save(output, overwrite)
    if study.num_bytes > LARGE_PAGE:
        size = f"{study.num_bytes / 2**20:.0f} MB"
        _note(f"the page has {size}, much for a phone; --num-pairs or --max-side make it smaller.")
    console = Console(soft_wrap=True, highlight=False)
    if moved:
        console.print(f"Of the study that was there: {' and '.join(map(str, moved))}.", markup=False)
    screens = f"{len(study.key.pairs)} pairs on {len(study.key.trials)} screens"
    console.print(f"Wrote {output / PAGE}: {screens}; give it to voters.", markup=False)
    console.print(f"Wrote {output / KEY}: tells the sides apart; keep it to yourself.", markup=False)


def serve(
    folder: Annotated[Path, typer.Argument(help="That `study build` wrote; votes go into its folder votes.")] = FOLDER,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets your whole network in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = PORT,
) -> None:
    """Serve the page and collect votes, on this machine only unless told otherwise. Ctrl-C ends it."""
    import socket

    from ras_dit.study.build import PAGE, VOTES
    from ras_dit.study.server import PageOutline, StudyServer

    console = Console(soft_wrap=True, highlight=False)
    page = PageOutline.load(folder / PAGE)

    def show(ballot: Ballot) -> None:
        console.print(f"{ballot.label}: {len(ballot.votes)} of {len(page.trials)} votes", markup=False)

    try:
        server = StudyServer(page, folder / VOTES, host, port, show)
    except OSError as error:
        raise ValueError(
            f"study serve: cannot listen on {host}, port {port} ({error.strerror}); try --port 0."
        ) from None
    if not server.is_local:
        _note(f"whoever reaches {host} can vote, and nothing is encrypted.")
    address = server.url.replace("//0.0.0.0:", f"//{socket.gethostname()}:")
    console.print(f"Voters go to {address}\nVotes go to {server.folder}. Ctrl-C ends.", markup=False)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass  # the way to end it
    finally:
        server.stop()
    console.print("Stopped.")


def report(
    votes: Annotated[
        list[Path] | None, typer.Argument(help="Files of votes, or folders of them; without any those by the key.")
    ] = None,
    key: Annotated[Path, typer.Option("--key", "-k", help="The key.json of the study.")] = FOLDER / "key.json",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers to this file, too.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw them into this PNG, too.")] = None,
    pairs: Annotated[bool, typer.Option("--pairs", help="Print a line for each pair, too.")] = False,
) -> None:
    """Win, tie and loss with 95 % intervals, and how far the voters can be trusted."""
    import json

    from ras_dit.cli.places import check_file
    from ras_dit.cli.study_tables import print_results
    from ras_dit.files import save_text
    from ras_dit.study import Key, read_ballots, tally
    from ras_dit.study.build import VOTES

    check_file("--plot", plot, ".png")
    check_file("--json", json_file)
    study = Key.load(key)
    places = votes or [key.parent / VOTES]
    ballots = read_ballots(places, study.study, study.trial_ids)
    results = tally(study, ballots.ballots, ballots.notes)
    if plot is not None:
        _draw(results, plot)
    if json_file is not None:
        save_text(json.dumps({"study": study.study, **results.to_dict()}, indent=2) + "\n", json_file)
    print_results(results, pairs)
    for path in (plot, json_file):
        if path is not None:
            Console(soft_wrap=True, highlight=False).print(f"Wrote {path}", markup=False)


def _draw(results: Results, path: Path) -> None:
    from ras_dit.study.plot import plot

    try:
        plot(results, path)
    except ImportError as error:
        raise ValueError(f"--plot: {error}") from error


def _note(text: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"ras-dit: note: {text}", markup=False)
