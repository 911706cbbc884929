"""Fills the README's tables from ``benchmarks/results/*.json`` (no number there is typed by hand) and writes
docs/models.md from the registry, docs/api.md from the docstrings.

``python -m benchmarks.readme`` writes; ``--check`` fails if the README is not what the results say.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks import api_page, arena_tables, experiment_tables, preset_table, record, speed_goals, speed_tables
from benchmarks.fit_gain import Run, committed_runs
from ras_dit.bench import case_named
from ras_dit.models.table import markdown as models_table

ROOT = Path(__file__).parent.parent


def gain_table() -> str:
    """What `ras_dit.gain` predicts beside what was measured, for every checked speed result of a CPU."""
    lines = [
        "| model | setting | limit by FLOPs | predicted | measured | error |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    every = [run for run in committed_runs() if run.plan.has_savings]
    runs = [run for run in every if run.is_checked]
    for run in runs:
        predicted = run.plan.predicted_speedup or 1.0
        title = case_named(run.case).title + ("" if run.is_fitted else " *")
        lines.append(
            f"| {title} | {run.name} | {run.plan.speedup_limit:.2f}x | {predicted:.2f}x | "
            f"**{run.speedup:.2f}x** | {predicted / run.speedup - 1:+.1%} |"
        )
    lines += ["", f"The largest error is {_worst([run for run in runs if run.is_fitted]):.0%}"]
    if others := [run for run in runs if not run.is_fitted]:
        where = ", ".join(dict.fromkeys(run.processor for run in others))
        lines[-1] += f" where the constants were fitted, {_worst(others):.0%} on another CPU ({where}, *)"
    unchecked = [run for run in every if not run.is_checked]
    more = (
        f" The constants were fitted to {len(unchecked)} more settings (of the embedded model), which are in no table: "
        "the benchmark checked less when they were timed."
    )
    return "\n".join([*lines[:-1], f"{lines[-1]}.{more if unchecked else ''}", ""])


def _worst(runs: list[Run]) -> float:
    return max(abs((run.plan.predicted_speedup or 1.0) / run.speedup - 1) for run in runs)


_OTHER_WAYS = "; *fused*: by oneDNN's product that adds the bias itself, *packed*: with weights laid out for it, too"


def linear_table() -> str:
    """Rates of bf16 linear layers on a CPU by number of rows: in one call, and in the fastest number of calls."""
    return "\n".join(_linear_lines(result) for result in record.read_all("cpu_linear*").values())


def _linear_lines(result: dict[str, Any]) -> str:
    rows = list(result["layers"][0]["rates"])
    has_others = "packed" in result["layers"][0]["rates"][rows[0]]
    lines = [
        "10^12 FLOP per second of one bf16 linear layer, by its number of rows: in one call, and (where that is more "
        f"than a tenth faster) in 2 or 4 calls{_OTHER_WAYS if has_others else ''} ({record.origin(result)})",
        "",
        "| in x out | " + " | ".join(f"{int(count):,} rows" for count in rows) + " |",
        "| --- |" + " --- |" * len(rows),
    ]
    for layer in result["layers"]:
        rates = " | ".join(_rate(layer["rates"][count]) for count in rows)
        lines.append(f"| {layer['in']} x {layer['out']} | {rates} |")
    return "\n".join([*lines, ""])


def host_table() -> str:
    """What a step costs the host, against one without RAS."""
    result = record.read("host_cost")
    config = result["config"]
    lines = [
        f"Milliseconds of one thread per step of {config['layers']} narrow layers (FLUX.1: double ones and "
        f"some single ones), medians of {config['repeats']} interleaved runs; regions of {config['ratio']:.0%} "
        f"({record.origin(result)})",
        "",
        "| transformer | without RAS | on a quarter of the tokens | dense step, kept | region step | region step that "
        "looks at every operation |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        plain = row["milliseconds"]["without RAS"]
        names = ("without RAS, a quarter of the tokens", "dense", "region", "region, the long way")
        cells = " | ".join(_times(row["milliseconds"][name], plain) for name in names)
        lines.append(f"| {row['transformer']} | {plain:.1f} | {cells} |")
    return "\n".join([*lines, ""])


def _times(milliseconds: float, plain: float) -> str:
    return f"{milliseconds:.1f} ({milliseconds / plain:.2f}x)"


def _rate(by_parts: dict[str, float]) -> str:
    whole, parts = by_parts["1"], max(filter(str.isdigit, by_parts), key=lambda count: by_parts[count])
    text = f"{whole:.2f}" + (f", {parts} calls: **{by_parts[parts]:.2f}**" if by_parts[parts] > 1.1 * whole else "")
    others = [f"{name} {by_parts[name]:.2f}" for name in ("fused", "packed") if name in by_parts]
    return ", ".join([text, *others])


def filled(text: str, blocks: dict[str, str]) -> str:
    for name, content in blocks.items():
        begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
        head, rest = text.split(begin)
        text = head + begin + "\n" + content + end + rest.split(end)[1]
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if something would change")
    arguments = parser.parse_args()
    files = {
        "README.md": {
            "presets": preset_table.preset_table(),
            "speed": speed_tables.speed_digest(),
            "quality": arena_tables.quality_digest(),
        },
        "docs/quality.md": {**arena_tables.quality_blocks(), **experiment_tables.experiment_blocks()},
        "docs/arena.md": arena_tables.arena_blocks(),
        "docs/performance.md": {
            "speed": speed_tables.speed_table() + "\n",
            "goals": speed_goals.goals_table(),
            "profile": speed_tables.profile_table(),
            "limits": speed_tables.limits_table(),
            "linear": linear_table(),
            "host": host_table(),
            "memory": speed_tables.memory_table(),
            "rounding": speed_tables.rounding_table(),
            "crossover": speed_tables.crossover_table(),
            "gain": gain_table(),
        },
    }
    texts = {name: filled((ROOT / name).read_text(encoding="utf-8"), blocks) for name, blocks in files.items()}
    texts["docs/models.md"] = models_table()
    texts["docs/api.md"] = api_page.api_page()
    stale = []
    for name, new in texts.items():
        path = ROOT / name
        if not path.is_file() or new != path.read_text(encoding="utf-8"):
            stale.append(name)
            if not arguments.check:
                path.write_text(new, encoding="utf-8")
    picture = ROOT / "docs/images/speed.png"
    is_drawn = speed_tables.is_drawn(picture)
    stale += [] if is_drawn else ["docs/images/speed.png"]
    if stale and arguments.check:
        sys.exit(f"{', '.join(stale)}: not what benchmarks/results and the registry of models say; run `make readme`.")
    if not is_drawn:
        speed_tables.draw(picture)
    print("up to date" if not stale else f"wrote {', '.join(stale)}")


if __name__ == "__main__":
    main()
