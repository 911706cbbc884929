"""The results as a small picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ras_dit.files import whole_file
from ras_dit.study.results import Results, Tally

COLORS = {"win": "#1f6fc0", "tie": "#b9b9b9", "loss": "#c0392b"}
MAX_VOTERS = 24


def plot(results: Results, path: Path) -> None:
    """Draw wins, ties and losses, and the preference among decided votes with its interval; of all and per voter.

    Args:
        results: of a study.
        path: the PNG to write.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the plot needs matplotlib: `pip install '.[arena]'` in the checkout.") from error

    rows = [("all votes", results.tally)]
    if len(results.voters) > 1:
        rows += [(_plain(voter.label), voter.tally) for voter in results.voters[:MAX_VOTERS]]
    figure = Figure(figsize=(9, 1.9 + 0.34 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    _draw_shares(left, rows)
    _draw_preference(right, rows)
    left.set_yticks(range(len(rows)), [name for name, _ in rows])
    left.set_ylim(len(rows) - 0.5, -0.5)
    figure.suptitle(_plain(f"{results.ours} (win) against {results.against} (loss)"), fontsize=11)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _plain(text: str) -> str:
    """Without what matplotlib takes for mathematics."""
    return text.replace("$", r"\$")


def _draw_shares(axes: Any, rows: list[tuple[str, Tally]]) -> None:
    for index, (_, found) in enumerate(rows):
        start = 0.0
        for name in COLORS:
            count = getattr(found, name)
            width = count / max(found.total, 1)
            axes.barh(index, width, left=start, height=0.7, color=COLORS[name], label=None if index else name)
            if width > 0.05:
                ink = "black" if name == "tie" else "white"
                axes.text(start + width / 2, index, str(count), ha="center", va="center", color=ink, fontsize=9)
            start += width
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of votes (numbers: votes)")
    axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)


def _draw_preference(axes: Any, rows: list[tuple[str, Tally]]) -> None:
    for index, (_, found) in enumerate(rows):
        share = found.preferred.value
        if share is None:
            continue
        low, high = found.preferred.interval
        size = 7 if index == 0 else 4
        axes.errorbar(share, index, xerr=[[share - low], [high - share]], fmt="o", ms=size, color="#333333", capsize=3)
    axes.axvline(0.5, color="#888888", lw=1, ls="--")
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("preferred among decided votes, 95 % interval")
    axes.grid(axis="x", alpha=0.25)
