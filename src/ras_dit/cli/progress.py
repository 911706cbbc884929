"""Progress on the terminal (standard error, so that standard output can be piped)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


@contextmanager
def runs_progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar of ``total`` units; yields the function that counts one."""
    with described_progress(what, total) as advance:
        yield lambda: advance(what)


@contextmanager
def described_progress(what: str, total: int) -> Iterator[Callable[[str], None]]:
    """A bar of ``total`` units, or of more once more were counted; yields the function that counts one and says how
    things stand."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        count = 0

        def advance(text: str) -> None:
            nonlocal count
            count += 1
            progress.update(task, completed=count, total=max(total, count), description=text)

        yield advance


@contextmanager
def share_of(advance: Callable[[], None], units: int) -> Iterator[Callable[[], None]]:
    """A part of a bar: the function that it yields counts up to so many units, and what is left of them is counted when
    the block ends well."""
    left = units

    def count() -> None:
        nonlocal left
        if left > 0:
            left -= 1
            advance()

    yield count
    while left > 0:
        count()
