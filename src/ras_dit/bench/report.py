"""Results for people: a table, a list of what was refused, and plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ras_dit.bench.results import holds_figures
from ras_dit.files import whole_file

if TYPE_CHECKING:
    from rich.console import RenderableType

MIB = 2.0**20
COLUMNS = ("setting", "T", "s", "speed-up", "same", "limit", "share", "step", "memory", "RAS")
LEGEND = (
    "T: token-steps. s: seconds of a loop. speed-up: over the best dense loop; same: over the dense loop of the same "
    "mode. limit: by FLOPs; share: what part of it was reached. step: region over dense step. memory: peak over "
    "dense's, over the plan's K/V cache. RAS: selection and forecast, share of a dense step."
)


def tables(cases: Mapping[str, Mapping[str, Any]]) -> list[RenderableType]:
    """What to print of all cases: a table per mode, crossover, and what was refused."""
    shown: list[RenderableType] = []
    for name, case in cases.items():
        modes = list(dict.fromkeys(row["mode"] for row in case["rows"]))
        shown += [speed_table(name, case, mode) for mode in modes]
        shown += [crossover_table(name, mode, found) for mode, found in case["crossover"].items()]
        shown += [f"{name}, {part}: {_no_figures(case, part)}. {why}" for part, why in case["refused"].items()]
    return [*shown, LEGEND] if shown else shown


def _no_figures(case: Mapping[str, Any], part: str) -> str:
    is_older = holds_figures(case, part)
    return "no new figures; those that are shown are of other code or options" if is_older else "no figures"


def speed_table(name: str, case: Mapping[str, Any], mode: str) -> RenderableType:
    """The rows of one mode."""
    from rich import box
    from rich.table import Table

    best = case["dense_best"]
    title = f"{case['title']} ({name}), {mode}; best dense loop {best['median']:.3f} s, {best['mode']}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "setting" else "right", no_wrap=True)
    for row in case["rows"]:
        if row["mode"] == mode:
            table.add_row(*cells(row))
    return table


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the table, in the order of `COLUMNS`."""
    has_steps = row.get("region_step") and row.get("dense_step")
    memory = (row.get("memory") or {}).get("extra_over_estimate")
    share = row["overhead"]["share"] if "overhead" in row else None
    return [
        row["name"],
        f"{row['token_steps']:.2f}" if "token_steps" in row else "",
        f"{row['median']:.3f}",
        f"{row['speedup']:.2f}x",
        f"{row['speedup_same_mode']:.2f}x",
        f"{row['limit']:.2f}x" if "limit" in row else "",
        f"{row['share_of_limit']:.0%}" if "limit" in row else "",
        f"{row['region_step'] / row['dense_step']:.3f}" if has_steps else "",
        f"{memory:.2f}" if memory is not None else "",
        f"{share:.2%}" if share is not None else "",
    ]


def crossover_table(name: str, mode: str, found: Mapping[str, Any]) -> RenderableType:
    """Sizes against ratios: the loop's speed-up, made of measured steps."""
    from rich import box
    from rich.table import Table

    title = f"{name}, {mode}: speed-up by picture size (limit in brackets)"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("size")
    table.add_column("tokens", justify="right")
    for one in found["rows"][0]["ratios"] if found["rows"] else []:
        table.add_column(f"ratio {one['ratio']:g}", justify="right")
    for row in found["rows"]:
        values = [f"{one['speedup']:.2f}x ({one['limit']:.2f}x)" for one in row["ratios"]]
        table.add_row(row["size"], f"{row['num_tokens']:,}", *values)
    gains = [gain_text(ratio, size) for ratio, size in found["gains_from"].items()]
    memory = [text for row in found["rows"] for text in _memory_texts(row)]
    table.caption = "; ".join([*gains, *memory, *(f"{size}: {why}" for size, why in found["left_out"].items())])
    return table


def _memory_texts(row: Mapping[str, Any]) -> list[str]:
    """What the lowest ratio takes at a size, in words."""
    found = [(f"{row['size']}, ratio {one['ratio']:g}", one["memory"]) for one in row["ratios"] if "memory" in one]
    known = [(name, memory["extra_bytes"]) for name, memory in found if memory["extra_bytes"] is not None]
    return [f"{name}: {extra / MIB:,.0f} MiB over dense" for name, extra in known]


def gain_text(ratio: str, size: str | None) -> str:
    """From where on a ratio gains, in words."""
    return f"ratio {ratio} gains from {size} on" if size else f"ratio {ratio} gains at none of these sizes"


def profile_lines(case: Mapping[str, Any]) -> list[str]:
    """Where the time of a dense and of a region step goes, per mode."""
    lines = []
    for mode in dict.fromkeys(row["mode"] for row in case["rows"]):
        found = [row for row in case["rows"] if row["mode"] == mode and "profile" in row]
        lines += [f"{mode}, {row['name']}: " + _groups(row["profile"]) for row in found]
    for mode, crossed in case["crossover"].items():
        for row in crossed["rows"]:
            lines += [f"{mode}, {row['size']}, dense: " + _groups(row["profile"])] if "profile" in row else []
            profiled = [one for one in row["ratios"] if "profile" in one]
            lines += [f"{mode}, {row['size']}, ratio {one['ratio']:g}: " + _groups(one["profile"]) for one in profiled]
    return lines


def _groups(profile: Mapping[str, float]) -> str:
    return ", ".join(f"{group} {spent:.2f} ms" for group, spent in profile.items() if spent)


def plot(
    cases: Mapping[str, Mapping[str, Any]], path: Path, captions: Mapping[str, str] | None = None, about: str = ""
) -> bool:
    """Speed-up beside its limit for every config, and memory beside the cache's estimate; crossover maps below.

    Args:
        cases: results by name.
        path: PNG.
        captions: what to say of a result, by the same names.
        about: goes into the file's text chunk ``Description``.

    Returns:
        Whether there was anything to draw; nothing is written otherwise.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the plot needs matplotlib: `pip install '.[arena]'` in the checkout.") from error

    panels = [(name, case, None) for name, case in cases.items() if case["rows"]]
    maps = [(name, case, mode) for name, case in cases.items() for mode in case["crossover"]]
    rows = [*panels, *maps]
    if not rows:
        return False
    heights = [3.6 if mode is None else 1.4 + 0.7 * len(case["crossover"][mode]["rows"]) for _, case, mode in rows]
    more = {name: f"\n{caption}" for name, caption in (captions or {}).items()}
    figure = Figure(figsize=(11, sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), 2, squeeze=False, height_ratios=heights)
    for (name, case, mode), (left, right) in zip(rows, axes, strict=True):
        if mode is None:
            _draw_speed(left, name + more.get(name, ""), case)
            _draw_memory(right, case)
        else:
            found = case["crossover"][mode]
            title = f"{name}, {mode}: speed-up over the best dense{more.get(name, '')}"
            _draw_map(left, title, found, (0.5, 1.5), lambda one: one["speedup"])
            _draw_map(right, "share of the limit", found, (0.0, 1.0), lambda one: one["speedup"] / one["limit"])
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110, metadata={"Description": about})
    return True


def _draw_speed(axes: Any, name: str, case: Mapping[str, Any]) -> None:
    modes = list(dict.fromkeys(row["mode"] for row in case["rows"]))
    names = list(dict.fromkeys(row["name"] for row in case["rows"] if "limit" in row))
    width = 0.8 / (len(modes) + 1)
    limits = {row["name"]: row["limit"] for row in case["rows"] if "limit" in row}
    axes.bar(range(len(names)), [limits[one] for one in names], width, color="0.8", label="limit by FLOPs")
    for place, mode in enumerate(modes, start=1):
        found = {row["name"]: row["speedup"] for row in case["rows"] if row["mode"] == mode}
        at = [index + place * width for index, one in enumerate(names) if one in found]
        axes.bar(at, [found[one] for one in names if one in found], width, label=mode)
    axes.axhline(1.0, color="0.4", lw=0.8)
    _set_labels(axes, [index + 0.4 - width / 2 for index in range(len(names))], names)
    axes.set_ylabel("speed-up over the best dense")
    axes.set_title(name, fontsize=9)
    axes.set_ylim(0, 1.35 * axes.get_ylim()[1])  # the legend stands over the bars
    axes.legend(fontsize=8)


def _set_labels(axes: Any, places: list[float], names: list[str]) -> None:
    """Names below bars, slanted where they would run into each other."""
    is_wide = len(names) > 4 or len("".join(names)) > 72
    slant: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if is_wide else {}
    axes.set_xticks(places, names, fontsize=8, **slant)


def _draw_memory(axes: Any, case: Mapping[str, Any]) -> None:
    found = [row for row in case["rows"] if (row.get("memory") or {}).get("extra_bytes") is not None]
    names = [f"{row['name']}, {row['mode']}" for row in found]
    estimate = [row["memory"]["kv_cache_estimate_bytes"] / MIB for row in found]
    extra = [row["memory"]["extra_bytes"] / MIB for row in found]
    axes.bar([index - 0.2 for index in range(len(found))], estimate, 0.4, color="0.8", label="K/V cache by the plan")
    axes.bar([index + 0.2 for index in range(len(found))], extra, 0.4, label="peak over dense")
    _set_labels(axes, [float(index) for index in range(len(found))], names)
    axes.set_ylabel("MiB")
    axes.set_ylim(top=1.3 * max(estimate + extra, default=1.0))  # room for the legend
    axes.legend(fontsize=8)


def _draw_map(
    axes: Any, title: str, found: Mapping[str, Any], span: tuple[float, float], value: Callable[[Any], float]
) -> None:
    rows = found["rows"]
    values = [[value(one) for one in row["ratios"]] for row in rows]
    axes.set_title(title, fontsize=9)
    if not rows:
        axes.set_axis_off()
        return
    axes.imshow(values, cmap="RdYlGn", vmin=span[0], vmax=span[1], aspect="auto")
    axes.set_xticks(range(len(values[0])), [f"{one['ratio']:g}" for one in rows[0]["ratios"]])
    axes.set_yticks(range(len(rows)), [row["size"] for row in rows])
    axes.set_xlabel("ratio")
    for y, line in enumerate(values):
        for x, number in enumerate(line):
            is_dark = not 0.1 < (number - span[0]) / (span[1] - span[0]) < 0.9  # both ends of the colours are
            axes.text(x, y, f"{number:.2f}", ha="center", va="center", color="white" if is_dark else "black")
