"""One JSON, one table and one plot of an arena."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ras_dit.arena import metrics
from ras_dit.arena.methods import Method
from ras_dit.arena.run import CONVERGED, DENSE, Arena
from ras_dit.files import save_text, whole_file

COLORS = {"dense": "#333333", "reference": "#c0392b", "baseline": "#e08e0b", "ras": "#1f6fc0", "cache": "#2e8b57"}
MIN_FRECHET_PICTURES = 100  # with fewer than a third of its 352 features it says nothing


def report(arena: Arena, has_plot: bool = True) -> dict[str, Any]:
    """Compare all pictures; writes ``results.json``, ``table.md`` and ``pareto.png`` beside them.

    Returns:
        What results.json holds: ``rows`` with name, group, token_steps (T), flops_share and time_share (of the dense
        run; of each the fastest call), metrics (name -> [mean, low, high], 95 % bootstrap; frechet, from 100 pictures
        on, without an interval) and per_picture (name -> list); ``failures`` with the step caches that do not run on
        the model.
    """
    dense, converged = (arena.pictures(arena.methods[i]) for i in range(2))
    judge = metrics.PromptJudge() if all(scene.subject is not None for scene in arena.scenes) else None
    failures = {method.name: why for method in arena.methods if (why := arena.failure(method)) is not None}
    fit = [method for method in arena.methods if method.name not in failures]
    rows = [_row(arena, method, dense, converged, judge) for method in fit]
    result = {"num_pictures": len(arena.scenes), "call": arena.call, "rows": rows, "failures": failures}
    save_text(json.dumps(result, indent=1) + "\n", arena.folder / "results.json")
    save_text(table(rows) + failed(failures), arena.folder / "table.md")
    if has_plot:
        plot(rows, arena.folder / "pareto.png")
    return result


def _row(arena: Arena, method: Method, dense: Any, converged: Any, judge: metrics.PromptJudge | None) -> dict[str, Any]:
    pictures, runs = arena.pictures(method), arena.runs(method)
    reference = arena.runs(arena.methods[0])
    # the fastest call is the one that other work on the machine disturbed least
    fastest, dense_fastest = (min(run["seconds"] for run in found) for found in (runs, reference))
    flops_share = runs[0]["flops"] / reference[0]["flops"]
    per_picture: dict[str, list[float]] = {}
    for name, others in ((DENSE, dense), (CONVERGED, converged)):
        if method.slug != name:
            found = metrics.fidelity(pictures, others)
            per_picture |= {f"{kind}_{name}": values for kind, values in found.items()}
    summary: dict[str, tuple[float, ...]] = {}
    if judge is not None:
        subjects = [scene.subject or 0 for scene in arena.scenes]
        backgrounds = [scene.background or 0 for scene in arena.scenes]
        per_picture |= judge.follows(pictures, subjects, backgrounds)
        if judge.renders is not None and len(pictures) >= MIN_FRECHET_PICTURES:
            summary["frechet"] = (judge.frechet(judge.features(pictures)),)  # resampling would bias it: no interval
    summary |= {name: metrics.mean_interval(values) for name, values in per_picture.items()}
    token_steps = runs[0]["token_steps"]
    if token_steps is None:  # evaluations of a dense run, whatever a cache left of them
        token_steps = arena.methods[0].steps * flops_share if method.cache is not None else float(evaluations(method))
    return {
        "method": method.to_dict(),
        "name": method.name,
        "group": method.group,
        "token_steps": round(token_steps, 3),
        "flops_share": round(flops_share, 4),
        "time_share": round(fastest / dense_fastest, 4),
        "notes": sorted({note for run in runs for note in run["notes"]}),
        "metrics": {name: [round(value, 4) for value in values] for name, values in summary.items()},
        "per_picture": {name: [round(value, 4) for value in values] for name, values in per_picture.items()},
    }


def evaluations(method: Method) -> int:
    """Transformer evaluations of a dense run."""
    return 2 * method.steps - 1 if method.solver == "heun" else method.steps


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table, most compute first."""
    columns = ("psnr_converged", "ssim_converged", "psnr_dense", "subject", "frechet")
    lines = [
        "| method | T | time | " + " | ".join(columns) + " |",
        "|---|---:|---:|" + "---:|" * len(columns),
    ]
    for row in sorted(rows, key=lambda row: -row["token_steps"]):
        cells = []
        for column in columns:
            values = row["metrics"].get(column)
            cells.append("" if values is None else _cell(values))
        lines.append(
            f"| {row['name']} | {row['token_steps']:.2f} | {row['time_share']:.2f} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines) + "\n"


def _cell(values: list[float]) -> str:
    interval = f" ({values[1]:.4g} to {values[2]:.4g})" if len(values) == 3 else ""
    return f"{values[0]:.4g}{interval}"


def failed(failures: dict[str, str]) -> str:
    """A Markdown list of the methods that do not run on this model."""
    if not failures:
        return ""
    return "\nDo not run on this model:\n\n" + "".join(f"* {name}: {why}\n" for name, why in failures.items())


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Compute against quality, one panel for each pair of axes; the best of every group are joined."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the plot needs matplotlib; install it with `pip install ras-dit[arena]`.") from error

    panels = [
        ("token_steps", "psnr_converged", "T (token-steps)", "PSNR against the converged run [dB]"),
        ("token_steps", "psnr_dense", "T (token-steps)", "PSNR against dense [dB]"),
        ("time_share", "psnr_converged", "time, share of dense", "PSNR against the converged run [dB]"),
        ("token_steps", "subject", "T (token-steps)", "subject recognised"),
    ]
    figure = Figure(figsize=(12, 9), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (x, y, x_label, y_label) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for group, color in COLORS.items():
            found = [row for row in rows if row["group"] == group and y in row["metrics"]]
            if not found:
                continue
            middle = [row["metrics"][y][0] for row in found]
            down = [row["metrics"][y][0] - row["metrics"][y][1] for row in found]
            up = [row["metrics"][y][2] - row["metrics"][y][0] for row in found]
            at = [row[x] for row in found]
            axes.errorbar(at, middle, yerr=[down, up], fmt="o", ms=4, lw=0.6, alpha=0.75, color=color, label=group)
            best = _front(list(zip(at, middle, strict=True)))
            axes.plot([p[0] for p in best], [p[1] for p in best], lw=1.2, color=color)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(alpha=0.25)
        axes.set_xlim(left=0)
    figure.axes[0].legend()
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points that no other beats with less compute."""
    front: list[tuple[float, float]] = []
    for point in sorted(points):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front
