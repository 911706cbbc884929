"""The report of a study on the screen."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ras_dit.study import Results
from ras_dit.study.results import Outcome, Share, Tally


def print_results(results: Results, has_pairs: bool = False) -> None:
    """Print the outcome, the checks and the voters.

    Args:
        results: of a study.
        has_pairs: a line for each pair as well.
    """
    console = Console(highlight=False)
    console.print(_outcomes(results))
    for line in _lines(results):
        console.print(line, markup=False, soft_wrap=True)
    console.print()
    console.print(_voters(results))
    if has_pairs:
        console.print(_pairs(results))
    for note in results.notes:
        console.print(f"Note: {note}", markup=False, soft_wrap=True)


def _lines(results: Results) -> list[str]:
    preferred = results.tally.preferred
    lines = [
        f"Of the {preferred.total} decided votes {_percent(preferred)} are for {results.ours}; "
        f"sign test p = {preferred.p_value:.3g}.",
        f"Each pair by its majority: {_counts(results.by_pair)}.",
        f"Each voter by theirs: {_counts(results.by_voter)}.",
        f"Left side: {_percent(results.left)} of {results.left.total} decided votes, p = {results.left.p_value:.3g}.",
    ]
    if results.same.total:
        same = results.same
        lines.append(f"Repeats: {same.count} of {same.total} answered alike, {results.reversed.count} reversed.")
    if results.caught.total:
        lines.append(f"Catches: {results.caught.count} of {results.caught.total} called about equal.")
    return lines


def _outcomes(results: Results) -> Table:
    found = results.tally
    title = f"{results.question} {results.ours} against {results.against}"
    table = Table(title=Text(title), title_justify="left", caption_justify="left")
    table.caption = f"{found.total} votes of {len(results.voters)} voter(s) on {_num_voted(results)} pair(s)"
    for name in ("", "votes", "share", "95 % interval"):
        table.add_column(name, justify="left" if not name else "right")
    rows: tuple[tuple[str, Outcome], ...] = (
        (f"{results.ours} is better (win)", "win"),
        ("about equal (tie)", "tie"),
        (f"{results.against} is better (loss)", "loss"),
    )
    for label, outcome in rows:
        share = found.share(outcome)
        low, high = share.interval
        table.add_row(Text(label), str(share.count), _rate(share), f"{low:.1%} to {high:.1%}")
    return table


def _num_voted(results: Results) -> int:
    return sum(pair.tally.total > 0 for pair in results.pairs)


def _voters(results: Results) -> Table:
    table = Table()
    for name in ("voter", "win", "tie", "loss", "left", "alike", "caught", "s per vote"):
        table.add_column(name, justify="left" if name == "voter" else "right")
    for voter in results.voters:
        table.add_row(
            Text(voter.label),
            *_numbers(voter.tally),
            _rate(voter.left),
            _of(voter.same),
            _of(voter.caught),
            f"{voter.median_seconds:.1f}",
        )
    return table


def _pairs(results: Results) -> Table:
    table = Table()
    for name in ("pair", "prompt", "win", "tie", "loss"):
        table.add_column(name, justify="left" if name in ("pair", "prompt") else "right")
    for pair in results.pairs:
        table.add_row(Text(pair.name), Text(pair.prompt or ""), *_numbers(pair.tally))
    return table


def _numbers(found: Tally) -> tuple[str, str, str]:
    return str(found.win), str(found.tie), str(found.loss)


def _counts(found: Tally) -> str:
    counts = f"{found.win} win, {found.tie} tie, {found.loss} loss"
    return f"{counts}; sign test p = {found.preferred.p_value:.3g}"


def _of(share: Share) -> str:
    return f"{share.count}/{share.total}" if share.total else ""


def _rate(share: Share) -> str:
    return "" if share.value is None else f"{share.value:.1%}"


def _percent(share: Share) -> str:
    low, high = share.interval
    return f"{_rate(share) or 'none'} ({low:.1%} to {high:.1%})"
