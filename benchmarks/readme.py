"""Fills the README's tables from ``benchmarks/results/*.json`` (no number there is typed by hand) and writes
docs/models.md from the registry.

``python -m benchmarks.readme`` writes; ``--check`` fails if the README is not what the results say.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks import record, speed_tables
from benchmarks.fit_gain import Run, committed_runs
from ras_dit.bench import case_named
from ras_dit.models.table import markdown as models_table

ROOT = Path(__file__).parent.parent


def origin(result: dict[str, Any]) -> str:
    hardware, versions = result["hardware"], result["versions"]
    where = hardware["gpu"] or f"{hardware['processor']}, {hardware['threads']} threads"
    software = f"torch {versions['torch']}, diffusers {versions['diffusers']}"
    return f"{where}; {software}; commit {result['commit']}, {result['date']}"


def gain_table() -> str:
    """What `ras_dit.gain` predicts beside what was measured, for every speed result of a CPU."""
    lines = [
        "| model | setting | limit by FLOPs | predicted | measured | error |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    runs = [run for run in committed_runs() if run.plan.has_savings]
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
    return "\n".join([*lines[:-1], f"{lines[-1]}.", ""])


def _worst(runs: list[Run]) -> float:
    return max(abs((run.plan.predicted_speedup or 1.0) / run.speedup - 1) for run in runs)


def linear_table() -> str:
    """Rates of bf16 linear layers on a CPU by number of rows: in one call, and in the fastest number of calls."""
    result = record.read("cpu_linear")
    rows = list(result["layers"][0]["rates"])
    lines = [
        "10^12 FLOP per second of one bf16 linear layer, by its number of rows: in one call, and (where that is more "
        f"than a tenth faster) in 2 or 4 calls ({origin(result)})",
        "",
        "| in x out | " + " | ".join(f"{int(count):,} rows" for count in rows) + " |",
        "| --- |" + " --- |" * len(rows),
    ]
    for layer in result["layers"]:
        rates = " | ".join(_rate(layer["rates"][count]) for count in rows)
        lines.append(f"| {layer['in']} x {layer['out']} | {rates} |")
    return "\n".join([*lines, ""])


def _rate(by_parts: dict[str, float]) -> str:
    whole, parts = by_parts["1"], max(by_parts, key=lambda count: by_parts[count])
    return f"{whole:.2f}" + (f", {parts} calls: **{by_parts[parts]:.2f}**" if by_parts[parts] > 1.1 * whole else "")


def dynamics_table() -> str:
    """How noise moves along a dense run."""
    result = record.read("dynamics_embedded")
    lines = [
        f"The embedded model, {result['num_pictures']} pictures, dense Adams-Bashforth 2, 28 steps; change over "
        f"{result['gap']} steps, and what the {result['gap']} steps before say of it. ({origin(result)})",
        "",
        "| step | noise level | change of the noise | best damping of a line | a quarter of the tokens holds | chosen "
        "by predicted error | by low std |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"][::2]:
        held = [f"{row[name]:.0%}" for name in ("held_by_best", "held_by_predicted_error", "held_by_low_std")]
        lines.append(
            f"| {row['step']} | {row['sigma']:.2f} | {row['change']:.0%} | {row['best_damping']:.2f} | "
            + " | ".join(held)
            + " |"
        )
    return "\n".join([*lines, ""])


def arena_table(rows: list[dict[str, Any]]) -> str:
    """Rows of the arena, most compute first; 95 % bootstrap intervals in brackets."""
    lines = [
        "| method | T | FLOPs | time | PSNR to converged | PSNR to dense | SSIM to dense | subject right |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(rows, key=lambda row: -row["token_steps"]):
        cells = [_interval(row, "psnr_converged", 1), _interval(row, "psnr_dense", 1), _interval(row, "ssim_dense", 3)]
        cells.append(f"{row['metrics']['subject'][0]:.0%}")
        lines.append(
            f"| {row['name']} | {row['token_steps']:.2f} | {row['flops_share']:.2f} | {row['time_share']:.2f} | "
            + " | ".join(cells)
            + " |"
        )
    return "\n".join([*lines, ""])


def _interval(row: dict[str, Any], name: str, digits: int) -> str:
    if name not in row["metrics"]:
        return ""
    mean, low, high = row["metrics"][name]
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def arena_origin(result: dict[str, Any]) -> str:
    return (
        f"The embedded model, {result['num_pictures']} pictures, 28-step grid unless said otherwise, guidance "
        f"{result['call']['guidance_scale']}: PSNR in dB and SSIM with 95 % bootstrap intervals, against the dense run "
        f"(Euler, 28 steps) and against a converged one (Adams-Bashforth 2, {converged_steps(result)} steps), all from "
        "the same noise. T is "
        "the number of token-steps (of step caches: the share of FLOPs times 28), FLOPs and time the share of those of "
        "the dense run (the fastest call of each). "
        f"({origin(result)})"
    )


def converged_steps(result: dict[str, Any]) -> int:
    """Steps of the converged run."""
    return next(row["method"]["steps"] for row in result["rows"] if row["name"] == "converged")


def chosen(result: dict[str, Any], *beginnings: str) -> list[dict[str, Any]]:
    """Rows whose names begin so."""
    return [row for row in result["rows"] if row["name"].startswith(beginnings)]


def quality_blocks(result: dict[str, Any]) -> dict[str, str]:
    """The tables of docs/quality.md."""
    apart = ("ablation", "cache ")
    others = [row for row in result["rows"] if not row["name"].startswith(apart) and row["name"] != "converged"]
    failures = "".join(f"* {name}: {why}\n" for name, why in result["failures"].items())
    return {
        "arena": arena_origin(result) + "\n\n" + arena_table(others),
        "paired": paired_table(result["paired"]),
        "failures": failures or "None.\n",
        "sensitivity": sensitivity_block(result) + more_pictures_block(),
        "ablation": arena_table(chosen(result, "ablation")),
        "memory": arena_table(chosen(result, "cache ")),
    }


def large_blocks() -> dict[str, str]:
    """The tables of the model of 256 x 256, where its arena was run."""
    if not (record.RESULTS / "arena_embedded_256.json").is_file():
        return dict.fromkeys(("large", "large-paired", "large-sensitivity"), "Not run yet.\n")
    result = record.read("arena_embedded_256")
    rows = [row for row in result["rows"] if row["name"] != "converged"]
    return {
        "large": arena_origin(result) + "\n\n" + arena_table(rows),
        "large-paired": paired_table(result["paired"]),
        "large-sensitivity": sensitivity_block({**result, "left_out": {}}),
    }


METRICS = {
    "psnr": "PSNR in dB",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "features": "distance in the classifier's features",
    "subject": "subject right",
    "background": "background right",
    "certainty": "log-likelihood of the prompt's scene in nats",
    "clip": "CLIP score",
    "kernel": "kernel distance",
    "frechet": "Frechet distance",
    "fid": "FID",
    "sfid": "sFID",
    "kid": "KID",
}


def metric_title(name: str) -> str:
    """A metric's name in results.json in words."""
    kind, _, reference = name.partition("_")
    words = {"dense": " to dense", "converged": " to converged", "real": " to real pictures"}
    alone = " to renders" if kind in ("kernel", "frechet") else ""
    return METRICS[kind] + words.get(reference, alone)


def sensitivity_block(result: dict[str, Any]) -> str:
    """Whether every metric tells the dense run from that of half its steps; results from before have none."""
    found = result.get("sensitivity")
    if found is None:
        return "These results are from before this check.\n"
    lines = [
        f"{result['num_pictures']} pictures. ({origin(result)})",
        "",
        f"| metric | {found['first_steps']} steps | {found['second_steps']} steps | difference | told apart |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, one in found["metrics"].items():
        difference, low, high = one["difference"]
        cells = (
            metric_title(name),
            f"{one['first']:.4g}",
            f"{one['second']:.4g}",
            f"{difference:+.3g} ({low:+.3g} to {high:+.3g})",
            "yes" if one["is_told_apart"] else "**no**",
        )
        lines.append("| " + " | ".join(cells) + " |")
    left_out = "".join(f"* {metric_title(name)}: {why}\n" for name, why in result["left_out"].items())
    return "\n".join([*lines, ""]) + (f"\nLeft out:\n\n{left_out}" if left_out else "")


def more_pictures_block() -> str:
    """The same on more pictures, where that was run: for distances of sets, which need them."""
    if not (record.RESULTS / "sensitivity_embedded.json").is_file():
        return ""
    result = record.read("sensitivity_embedded")
    lines = [
        "",
        "| method | " + " | ".join(metric_title(name) for name in SET_METRICS) + " |",
        "| --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        cells = [_value(row["metrics"].get(name)) for name in SET_METRICS]
        lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    return "\nOn more pictures: " + sensitivity_block({**result, "left_out": {}}) + "\n".join([*lines, ""])


SET_METRICS = ("frechet", "kernel", "certainty")


def _value(numbers: list[float] | None) -> str:
    if numbers is None:
        return ""
    return f"{numbers[0]:.4g}" + (f" ({numbers[1]:.3g} to {numbers[2]:.3g})" if len(numbers) == 3 else "")


def paired_table(pairs: list[dict[str, Any]]) -> str:
    """How much better one method is than another, picture by picture."""
    lines = ["| ours | against | PSNR to converged, difference in dB | to dense |", "| --- | --- | --- | --- |"]
    for pair in pairs:
        cells = [
            f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
            for mean, low, high in (pair["psnr_converged"], pair["psnr_dense"])
        ]
        lines.append(f"| {pair['ours']} | {pair['other']} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def inpainting_table() -> str:
    """Nearness to a dense run inside a mask, with and without a region of interest."""
    result = record.read("inpainting_embedded")
    share = result["side"] ** 2 / 128**2
    lines = [
        f"The embedded model, {result['num_pictures']} pictures, something else painted into a box of {share:.0%} of "
        "each: PSNR in dB to the dense run inside the box, with 95 % bootstrap intervals, and the difference to "
        f"`balanced` picture by picture. ({origin(result)})",
        "",
        "| method | T | PSNR inside to dense | over `balanced` |",
        "| --- | --- | --- | --- |",
    ]
    for row in sorted(result["rows"], key=lambda row: -row["token_steps"]):
        mean, low, high = row["psnr"]
        over = "{:+.1f} ({:+.1f} to {:+.1f})".format(*row["better_by"])
        lines.append(f"| {row['name']} | {row['token_steps']:.2f} | {mean:.1f} ({low:.1f} to {high:.1f}) | {over} |")
    return "\n".join([*lines, ""])


def quality_digest(result: dict[str, Any]) -> str:
    """The rows a reader needs first; all of them are in docs/quality.md."""
    wanted = (
        "dense",
        "Euler",
        "UniPC",
        "preset",
        "RAS, T",
        "skipping only",
        "TaylorSeer order 1",
        "DBCache",
        "MagCache",
    )
    rows = chosen(result, *wanted) + [row for row in chosen(result, "authors") if row["name"].endswith("28 steps")]
    return (
        arena_origin(result)
        + "\n\n"
        + arena_table(rows)
        + "\nAll methods, and what to make of them: [docs/quality.md](docs/quality.md).\n"
    )


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
    arena = record.read("arena_embedded")
    speed = speed_tables.speed_table(origin) + "\n"
    files = {
        "README.md": {"speed": speed, "quality": quality_digest(arena)},
        "docs/quality.md": {
            **quality_blocks(arena),
            **large_blocks(),
            "dynamics": dynamics_table(),
            "inpainting": inpainting_table(),
        },
        "docs/performance.md": {
            "speed": speed,
            "profile": speed_tables.profile_table(origin),
            "limits": speed_tables.limits_table(),
            "linear": linear_table(),
            "memory": speed_tables.memory_table(origin),
            "crossover": speed_tables.crossover_table(origin),
            "gain": gain_table(),
        },
    }
    texts = {name: filled((ROOT / name).read_text(encoding="utf-8"), blocks) for name, blocks in files.items()}
    texts["docs/models.md"] = models_table()
    stale = []
    for name, new in texts.items():
        path = ROOT / name
        if not path.is_file() or new != path.read_text(encoding="utf-8"):
            stale.append(name)
            if not arguments.check:
                path.write_text(new, encoding="utf-8")
    if stale and arguments.check:
        sys.exit(f"{', '.join(stale)}: not what benchmarks/results and the registry of models say; run `make readme`.")
    if not arguments.check:
        speed_tables.draw(ROOT / "docs/images/speed.png")
    print("up to date" if not stale else f"wrote {', '.join(stale)}")


if __name__ == "__main__":
    main()
