"""The README's table of presets: what each costs, and how near to the dense picture it comes."""

from __future__ import annotations

from typing import Any

from benchmarks import record
from ras_dit.bench import case_named
from ras_dit.presets import PRESETS


def preset_table() -> str:
    """Shares of FLOPs and time, PSNR against dense on both models in the box, and the cache of a large model."""
    small, large = record.read("arena_embedded"), record.read("arena_embedded_256")
    rows, rows_256 = ({row["name"]: row for row in result["rows"]} for result in (small, large))
    case = case_named("sd3-medium")
    outline = case.outline()
    lines = [
        "| preset | FLOPs | time | PSNR against dense, 256 tokens | 1,024 tokens | time, 1,024 tokens | K/V cache |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, config in PRESETS.items():
        row, other = rows[f"preset {name}"], rows_256[f"preset {name}"]
        cost = case.plan(config, outline).cost
        assert cost is not None
        size = case.num_rows * cost.kv_cache_bytes / 2**30
        cells = [
            f"`{name}`",
            f"{row['flops_share']:.2f}",
            f"{row['time_share']:.2f}",
            _decibels(row["metrics"]["psnr_dense"]),
            _decibels(other["metrics"]["psnr_dense"]),
            f"{other['time_share']:.2f}",
            f"{size:.1f} GiB" if size else "none",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"FLOPs and time are shares of the dense run's, of 28 steps; PSNR in dB with its 95 % bootstrap interval, over "
        f"{small['num_pictures']} and {large['num_pictures']} pictures of the models in the box "
        f"({record.origin(small)}). The cache is worked out, not measured: of one picture by "
        f"{case.title}, with guidance.",
        "",
        f"For scale: the dense run is itself {_psnr(rows['dense'], 'psnr_converged')} and "
        f"{_psnr(rows_256['dense'], 'psnr_converged')} dB from a converged one, and a dense run of half as many steps "
        f"is {_psnr(rows['Euler, 14 steps'], 'psnr_dense')} and {_psnr(rows_256['Euler, 14 steps'], 'psnr_dense')} dB "
        "from it.",
        "",
    ]
    return "\n".join(lines)


def _psnr(row: dict[str, Any], against: str) -> str:
    return f"{row['metrics'][against][0]:.0f}"


def _decibels(estimate: list[float]) -> str:
    middle, low, high = estimate
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"
