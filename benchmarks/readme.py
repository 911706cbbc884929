"""Fills the README's tables from ``benchmarks/results/*.json`` (no number there is typed by hand) and writes
docs/models.md from the registry.

``python -m benchmarks.readme`` writes; ``--check`` fails if the README is not what the results say.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks import record
from ras_dit.models.table import markdown as models_table

ROOT = Path(__file__).parent.parent


def origin(result: dict[str, Any]) -> str:
    hardware, versions = result["hardware"], result["versions"]
    where = hardware["gpu"] or f"{hardware['processor']}, {hardware['threads']} threads"
    software = f"torch {versions['torch']}, diffusers {versions['diffusers']}"
    return f"{where}; {software}; commit {result['commit']}, {result['date']}"


def speed_table() -> str:
    lines = []
    for path in sorted(record.RESULTS.glob("speed_*.json")):
        result = record.read(path.stem)
        dense = result["rows"][0]
        lines += [
            f"**{result['title'][0].upper()}{result['title'][1:]}**, {dense['steps']} steps with guidance; dense "
            f"{dense['median']:.2f} s. ({origin(result)}; median of interleaved runs.)",
            "",
            "| setting | T | time | speed-up | limit by FLOPs | share of the limit | region step / dense step |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for row in result["rows"][1:]:
            step = f"{row['region_step'] / row['dense_step']:.3f}" if row["region_step"] and row["dense_step"] else ""
            lines.append(
                f"| {row['name']} | {row['token_steps']:.2f} | {row['median']:.2f} s | **{row['speedup']:.2f}x** | "
                f"{row['limit']:.2f}x | {row['share_of_limit']:.0%} | {step} |"
            )
        lines.append("")
    return "\n".join([*lines, _SPEED_NOTE])


_SPEED_NOTE = (
    "T is the number of token-steps, the unit of equal compute: a dense step counts 1, a region step its share of "
    "tokens. `ratio` rows use the paper's schedule (of 28 steps, 0-3, 12 and 20 dense). Whole denoising loop, text "
    "encoding included, without the VAE. Small pictures are held back by the fixed cost of every operation."
)


def profile_table() -> str:
    """Where the time of one transformer call goes, dense and in the leanest region step, against the FLOP share."""
    lines = []
    for path in sorted(record.RESULTS.glob("speed_*.json")):
        result = record.read(path.stem)
        dense, region = result["rows"][0], result["rows"][-1]
        if "profile" not in region:
            continue
        lines += [
            f"**{result['title'][0].upper()}{result['title'][1:]}**: one evaluation, dense and `{region['name']}` "
            f"({region['num_active']} of {region['num_tokens']} image tokens), milliseconds ({origin(result)})",
            "",
            "| operations | dense | region | region / dense |",
            "| --- | --- | --- | --- |",
        ]
        for group, before in dense["profile"].items():
            after = region["profile"][group]
            lines.append(f"| {group} | {before:.1f} | {after:.1f} | {after / before:.3f} |")
        lines.append("")
    return "\n".join([*lines, ""])


def linear_table() -> str:
    """Rates of bf16 linear layers on a CPU by number of rows."""
    result = record.read("cpu_linear")
    rows = list(result["layers"][0]["rates"])
    lines = [
        f"10^12 FLOP per second of one bf16 linear layer, by its number of rows ({origin(result)})",
        "",
        "| in x out | " + " | ".join(f"{int(count):,} rows" for count in rows) + " |",
        "| --- |" + " --- |" * len(rows),
    ]
    for layer in result["layers"]:
        rates = " | ".join(f"{layer['rates'][count]:.2f}" for count in rows)
        lines.append(f"| {layer['in']} x {layer['out']} | {rates} |")
    return "\n".join([*lines, ""])


def quality_table(result: dict[str, Any]) -> str:
    lines = [
        f"The embedded model, {result['num_images']} prompts, {result['steps']}-step grid, guidance "
        f"{result['guidance']}: PSNR in dB (mean and half-width of its 95 % interval) and SSIM against the dense run "
        f"and against a converged one ({result['converged_steps']} steps) from the same noise. Commit "
        f"{result['commit']}, {result['date']}.",
        "",
        "| method | T | PSNR to dense | SSIM to dense | PSNR to converged |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        cells = [_interval(row["psnr_dense"], 1), _interval(row["ssim_dense"], 3), _interval(row["psnr_converged"], 1)]
        lines.append(f"| {row['name']} | {row['token_steps']:.2f} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _interval(value: list[float] | None, digits: int) -> str:
    return "" if value is None else f"{value[0]:.{digits}f} ± {value[1]:.{digits}f}"


def quality_digest(result: dict[str, Any]) -> str:
    """The rows a reader needs first; all of them are in docs/quality.md."""
    wanted = ("dense,", "the authors' settings", "random, ", "error, 0", "preset")
    rows = [row for row in result["rows"] if row["name"].startswith(wanted)]
    return (
        quality_table({**result, "rows": rows})
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
    quality = record.read("quality_embedded")
    files = {
        "README.md": {"speed": speed_table() + "\n", "quality": quality_digest(quality)},
        "docs/quality.md": {"quality": quality_table(quality)},
        "docs/performance.md": {"speed": speed_table() + "\n", "profile": profile_table(), "linear": linear_table()},
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
    print("up to date" if not stale else f"wrote {', '.join(stale)}")


if __name__ == "__main__":
    main()
