"""The README's table of presets: what each costs, and how near to the dense picture it comes."""

from __future__ import annotations

from benchmarks import record
from benchmarks.cells import row_named
from ras_dit.bench import case_named
from ras_dit.presets import PRESETS


def preset_table() -> str:
    """Shares of FLOPs and time, PSNR against dense on both models in the box, and the cache of a large model."""
    small, large = record.read("arena_embedded"), record.read("arena_embedded_256")
    rows, rows_256 = ({row["name"]: row for row in result["rows"]} for result in (small, large))
    case = case_named("sd3-medium")
    outline = case.outline()
    lines = [
        "| preset | T | FLOPs | time, 256 tokens | time, 1,024 tokens | PSNR against dense, 256 tokens | PSNR, 1,024 "
        "tokens | K/V cache |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, config in PRESETS.items():
        row, other = rows[f"preset {name}"], rows_256[f"preset {name}"]
        cost = case.plan(config, outline).cost
        assert cost is not None
        size = case.num_rows * cost.kv_cache_bytes / 2**30
        cells = [
            f"`{name}`",
            f"{row['token_steps']:.2f}",
            f"{row['flops_share']:.2f}",
            f"{row['time_share']:.2f}",
            f"{other['time_share']:.2f}",
            _decibels(row["metrics"]["psnr_dense"]),
            _decibels(other["metrics"]["psnr_dense"]),
            f"{size:.1f} GiB" if size else "none",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "FLOPs (of 256 tokens) and time are shares of the dense run's, of 28 steps; of a time believe the first digit. "
        "PSNR is in dB, with its 95 % bootstrap interval, over "
        f"{small['num_pictures']} pictures of 256 tokens and {large['num_pictures']} of 1,024 by the embedded model. "
        f"The cache is worked out, not measured: of one picture by {case.title}, with guidance. "
        f"({' and '.join(dict.fromkeys(map(record.machine, (small, large))))}; versions and commits: "
        "[docs/arena.md](docs/arena.md).)",
        "",
        f"For scale: dense runs of half as many steps are {_both('Euler, 14 steps', 'psnr_dense')} dB from the dense "
        f"run, on 256 and 1,024 tokens, and dense runs {_both('dense', 'psnr_converged')} dB from a converged one.",
        "",
    ]
    return "\n".join(lines)


def _both(method: str, against: str) -> str:
    """A PSNR on both models."""
    rows = (row_named(record.read(name), method) for name in ("arena_embedded", "arena_embedded_256"))
    return " and ".join(f"{row['metrics'][against][0]:.0f}" for row in rows)


def _decibels(estimate: list[float]) -> str:
    middle, low, high = estimate
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"
