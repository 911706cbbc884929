"""One JSON, one table and one plot of an arena."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ras_dit.arena.measure import Measured, Measures, half_of_dense, is_to_itself, sensitivity, shortened, summary
from ras_dit.arena.methods import Method
from ras_dit.arena.origins import mixed, origins
from ras_dit.arena.perceptual import Perceptual
from ras_dit.arena.run import DENSE, Arena
from ras_dit.files import save_text, whole_file

GROUPS = {
    "ras": ("#1f6fc0", "RAS"),
    "cache": ("#2e8b57", "step caches"),
    "dense": ("#333333", "dense, fewer steps"),
    "baseline": ("#e08e0b", "random or oldest tokens"),
    "reference": ("#c0392b", "the authors' settings"),
}
"""Colour and title in plots."""
MOST_LABELS = 15
COLUMNS = (
    "psnr_converged",
    "ssim_converged",
    "lpips_converged",
    "features_converged",
    "psnr_dense",
    "lpips_dense",
    "features_dense",
    "subject",
    "clip",
    "kernel",
    "frechet",
    "frechet_corrected",
    "kid_real",
    "fid_real",
    "fid_real_corrected",
    "sfid_real",
    "sfid_real_corrected",
)


def report(arena: Arena, has_plot: bool = True, perceptual: Perceptual | None = None) -> dict[str, Any]:
    """Compare all pictures; writes ``results.json``, ``table.md`` and ``pareto.png`` beside them.

    Args:
        arena: a painted one, by whatever version.
        has_plot: draw too.
        perceptual: networks by others for LPIPS, FID, sFID, KID and CLIP score; None does without.

    Returns:
        What results.json holds: ``rows`` with name, group, token_steps (T), flops_share and time_share (of the dense
        run; of each the fastest call), flops_pictures (how many pictures the FLOPs are of, and with them T of a step
        cache: all, or those of the first call where they depend on the pictures), painted_with (versions and machine,
        several if calls differ), metrics (name -> [estimate, low, high], 95 % bootstrap; Frechet distances as they are
        usually given stand alone) and per_picture (name -> list); ``pipeline``, what painted them; ``notes``, whether
        rows were painted with different versions or on different machines; ``failures`` with the methods that do not
        run on the model or the machine; ``left_out`` with the metrics that could not be had and why; ``sensitivity``,
        whether each metric tells the dense run from one of half its steps (None if there is none).
    """
    measures = Measures(arena, perceptual)
    failures = {method.name: why for method in arena.methods if (why := arena.failure(method)) is not None}
    compared, rows = {DENSE, getattr(half_of_dense(arena), "slug", DENSE)}, []
    kept: dict[str, Measured] = {}
    for method in arena.methods:
        if method.name not in failures:
            found = measures.of(method)
            rows.append(_row(arena, method, found))
            if method.slug in compared:
                kept[method.slug] = found
    result = {
        "num_pictures": len(arena.scenes),
        "call": arena.call,
        "pipeline": arena.pipeline,
        "rows": rows,
        "notes": mixed(rows),
        "failures": failures,
        "left_out": measures.left_out,
        "sensitivity": sensitivity(arena, kept),
    }
    save_text(json.dumps(result, indent=1) + "\n", arena.folder / "results.json")
    save_text(text(result), arena.folder / "table.md")
    if has_plot:
        plot(rows, arena.folder / "pareto.png")
    return result


def _row(arena: Arena, method: Method, found: Measured) -> dict[str, Any]:
    runs, reference = arena.runs(method), arena.runs(arena.methods[0])
    fastest = _fastest(runs, "seconds")
    has_beside = all("dense_seconds" in run for run in runs)
    dense_fastest = _fastest(runs, "dense_seconds") if has_beside else _fastest(reference, "seconds")
    flops_share = runs[0]["flops"] / reference[0]["flops"]
    token_steps = None
    if runs[0]["token_steps"] is not None:
        token_steps = sum(run["token_steps"] * run["count"] for run in runs) / sum(run["count"] for run in runs)
    if token_steps is None:  # evaluations of a dense run, whatever a cache left of them
        token_steps = arena.methods[0].steps * flops_share if method.is_rival else float(method.evaluations)
    per_picture = {name: values for name, values in found.per_picture.items() if not is_to_itself(name, method.slug)}
    return {
        "method": method.to_dict(),
        "name": method.name,
        "group": method.group,
        "token_steps": round(token_steps, 3),
        "flops_share": round(flops_share, 4),
        "flops_pictures": runs[0]["count"] if method.is_adaptive else len(arena.scenes),
        "time_share": round(fastest / dense_fastest, 4),
        "notes": sorted({note for run in runs for note in run["notes"]}),
        "painted_with": origins(runs),
        "metrics": {
            name: [shortened(value) for value in values] for name, values in summary(found, method.slug).items()
        },
        "per_picture": {name: [shortened(value) for value in values] for name, values in per_picture.items()},
    }


def _fastest(runs: list[dict[str, Any]], name: str) -> float:
    """Seconds of the call that other work on the machine disturbed least, of those with the most pictures."""
    most = max(run["count"] for run in runs)
    return float(min(run[name] for run in runs if run["count"] == most))


def table(rows: list[dict[str, Any]], checks: Collection[str] = ()) -> str:
    """A Markdown table, most compute first, with a column for every metric that any row has.

    Args:
        rows: of a result.
        checks: metrics that find ruined pictures but cannot rank (`cannot_rank`); their columns stand last.
    """
    columns = [name for name in COLUMNS if any(name in row["metrics"] for row in rows)]
    columns.sort(key=lambda name: name in checks)
    titles = [f"check: {name}" if name in checks else name for name in columns]
    lines = [
        "| method | T | time | " + " | ".join(titles) + " |",
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


def few_counted(result: dict[str, Any]) -> str:
    """A line of Markdown where FLOPs of some rows are of some of the pictures."""
    every = result["num_pictures"]
    counts = {count for row in result["rows"] if (count := row.get("flops_pictures", every)) < every}
    if not counts:
        return ""
    return (
        "\nStep caches, and dense steps on demand, may compute more of one picture than of another. Their FLOPs, and T "
        f"of step caches, are of the first {min(counts)} of {every} pictures alone.\n"
    )


def told(notes: Sequence[str]) -> str:
    """Notes on a whole table, as a Markdown list."""
    return "\n" + "".join(f"* Note: {note}\n" for note in notes) if notes else ""


def failed(failures: dict[str, str]) -> str:
    """A Markdown list of the methods that do not run on this model, or with what is installed."""
    if not failures:
        return ""
    lines = [f"* {name}: {why}\n" for name, why in failures.items()]
    return "\nDo not run here, on this model or with what is installed:\n\n" + "".join(lines)


def left_out(metrics: dict[str, str]) -> str:
    """A Markdown list of the metrics that could not be had."""
    if not metrics:
        return ""
    return "\nLeft out:\n\n" + "".join(f"* {name}: {why}\n" for name, why in metrics.items())


def sensitivity_table(found: dict[str, Any]) -> str:
    """What every metric says of the dense run and that of half its steps, as Markdown."""
    lines = [
        f"| metric | {found['first']}, {found['first_steps']} steps | {found['second']} | difference | told apart |",
        "|---|---:|---:|---:|---|",
    ]
    for name, one in found["metrics"].items():
        verdict = "yes" if one["is_told_apart"] else "no"
        cells = (name, f"{one['first']:.4g}", f"{one['second']:.4g}", _cell(one["difference"]), verdict)
        lines.append("| " + " | ".join(cells) + " |")
    blind = cannot_rank(found)
    advice = f"\nDo not rank methods by {', '.join(blind)}: half the steps look like all of them.\n" if blind else ""
    return "\n".join(lines) + "\n" + advice


def cannot_rank(found: dict[str, Any] | None) -> list[str]:
    """Metrics for which half the steps look like all of them, of what ``sensitivity`` says."""
    return [] if found is None else [name for name, one in found["metrics"].items() if not one["is_told_apart"]]


def text(result: dict[str, Any]) -> str:
    """All of a result as Markdown: the table, what to know of it, what failed, what was left out, what the metrics tell
    apart. (Results of earlier versions know less.)"""
    found = result["sensitivity"]
    apart = "" if found is None else "\nDo the metrics tell half the steps from all?\n\n" + sensitivity_table(found)
    known = table(result["rows"], cannot_rank(found)) + few_counted(result) + told(result.get("notes", ()))
    return known + failed(result["failures"]) + left_out(result["left_out"]) + apart


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Compute against quality, one panel for each pair of axes; the best of every group are joined, and those that no
    method beats with less compute are named (all, if there are few)."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the plot needs matplotlib: `pip install '.[arena]'` in the checkout.") from error

    panels = [
        ("flops_share", "psnr_converged", "FLOPs, share of dense", "PSNR against the converged run [dB]"),
        ("flops_share", "psnr_dense", "FLOPs, share of dense", "PSNR against dense [dB]"),
        ("time_share", "psnr_converged", "time, share of dense", "PSNR against the converged run [dB]"),
        ("time_share", "psnr_dense", "time, share of dense", "PSNR against dense [dB]"),
    ]
    figure = Figure(figsize=(15, 9), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (x, y, x_label, y_label) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        shown = [row for row in rows if y in row["metrics"] and row["group"] in GROUPS]
        for group, (color, title) in GROUPS.items():
            found = [row for row in shown if row["group"] == group]
            if not found:
                continue
            middle = [row["metrics"][y][0] for row in found]
            down = [row["metrics"][y][0] - row["metrics"][y][1] for row in found]
            up = [row["metrics"][y][2] - row["metrics"][y][0] for row in found]
            at = [row[x] for row in found]
            axes.errorbar(at, middle, yerr=[down, up], fmt="o", ms=4, lw=0.6, alpha=0.75, color=color, label=title)
            best = _front(list(zip(at, middle, strict=True)))
            axes.plot([p[0] for p in best], [p[1] for p in best], lw=1.2, color=color)
        points = {(row[x], row["metrics"][y][0]): row for row in shown}
        _name(axes, points if len(points) <= MOST_LABELS else {point: points[point] for point in _front(list(points))})
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(alpha=0.25)
        axes.set_xlim(left=0)
    titles = {
        title: handle for axes in figure.axes for handle, title in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(titles.values(), titles.keys(), loc="outside upper left", ncols=len(titles), frameon=False)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _name(axes: Any, points: Mapping[tuple[float, float], dict[str, Any]]) -> None:
    """Numbers beside points (those with the most compute first), and beside the panel the names of these methods."""
    for number, point in enumerate(sorted(points, reverse=True)):
        row = points[point]
        style: dict[str, Any] = {"fontsize": 7.5, "color": GROUPS[row["group"]][0]}
        axes.annotate(f"{number + 1}", point, xytext=(-4, 3), textcoords="offset points", ha="right", **style)
        axes.text(1.02, 0.97 - 0.045 * number, f"{number + 1}  {row['name']}", transform=axes.transAxes, **style)


def _front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points that no other beats with less compute."""
    front: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front
