"""`ras-dit metrics`: how near the pictures of one folder come to those of another."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ras_dit.cli import options

if TYPE_CHECKING:
    from ras_dit.arena.perceptual import Perceptual
    from ras_dit.study import Pair

UNITS = {"psnr": ("PSNR, dB", ".2f"), "ssim": ("SSIM", ".4f"), "lpips": ("LPIPS", ".4f")}
"""Title and format of every metric."""
LOWER_IS_NEARER = ("lpips",)


def metrics(
    pictures: Annotated[Path, typer.Argument(help="Folder of the pictures (or videos) in question.")],
    reference: Annotated[
        Path, typer.Argument(help="Folder that they are compared with, such as one by `ras-dit generate --dense`.")
    ],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the values of every pair to this file.")
    ] = None,
    lpips_weights: options.LPIPSWeights = None,
    device: options.Device = "auto",
) -> None:
    """Compare two folders, pair by pair: PSNR, SSIM and, if its weights are at hand, LPIPS; the mean and the worst.

    Files of equal names are a pair, or PNGs by `ras-dit generate` of one prompt, seed and size. Videos (animated PNGs)
    are compared over all of their frames.
    """
    from ras_dit.arena.perceptual import MIN_LPIPS_SIZE
    from ras_dit.cli.pipelines import resolve_device
    from ras_dit.cli.places import check_file
    from ras_dit.cli.progress import runs_progress
    from ras_dit.files import save_text
    from ras_dit.study import find_pairs
    from ras_dit.versions import versions

    check_file("--json", json_file)
    place = resolve_device(device)
    pairs = find_pairs(Path(), str(pictures), str(reference))
    network, why_not = _lpips(lpips_weights, place)
    values: dict[str, list[float]] = {}
    with runs_progress("comparing", len(pairs)) as advance:
        for pair in pairs:
            for name, value in _nearness(pair, network).items():
                values.setdefault(name, []).append(value)
            advance()
    if network is not None and len(values.get("lpips", ())) < len(pairs):
        why_not = f"left out; a picture has a side of less than {MIN_LPIPS_SIZE} pixels."
    found = {name: _summed_up(name, values[name], pairs) for name in UNITS if len(values.get(name, ())) == len(pairs)}
    console = Console()
    console.print(_table(found, len(pairs)))
    if why_not is not None:
        console.print(f"LPIPS: {why_not}", markup=False, soft_wrap=True)
    if json_file is not None:
        record = {"pictures": str(pictures), "reference": str(reference), "metrics": found, "versions": versions()}
        save_text(json.dumps(record, indent=1) + "\n", json_file)
        console.print(f"Wrote {json_file}", markup=False, soft_wrap=True)


def _lpips(weights: Path | None, device: str) -> tuple[Perceptual | None, str | None]:
    """The network, or why there is none."""
    from ras_dit.arena.perceptual import Perceptual

    try:
        return Perceptual.load_lpips(weights, device), None
    except ValueError as error:
        if weights is not None:
            raise
        return None, str(error).removeprefix("lpips: got ")


def _nearness(pair: Pair, network: Perceptual | None) -> dict[str, float]:
    """The values of a pair, by metric.

    Raises:
        ValueError: names the pair whose sizes differ.
    """
    from ras_dit.arena.metrics import fidelity
    from ras_dit.arena.perceptual import MIN_LPIPS_SIZE
    from ras_dit.arena.run import read_pixels

    first, second = read_pixels(pair.ours)[None], read_pixels(pair.against)[None]
    if first.shape != second.shape:
        sizes = ["x".join(map(str, one.shape[1:])) for one in (first, second)]
        raise ValueError(
            f"metrics: got {pair.ours} of {sizes[0]} and {pair.against} of {sizes[1]} (frames, channels, height and "
            "width); allowed: pairs of one size. Paint the same requests into both folders."
        )
    found = {name: values[0] for name, values in fidelity(first, second).items()}
    if network is not None and min(first.shape[-2:]) >= MIN_LPIPS_SIZE:
        found["lpips"] = float(network.lpips_between(first, second)[0])
    return found


def _summed_up(name: str, values: Sequence[float], pairs: Sequence[Pair]) -> dict[str, Any]:
    """The mean of a metric with its 95 % bootstrap interval, the worst pair, and the value of each."""
    from ras_dit.arena.metrics import mean_interval

    worst = max(values) if name in LOWER_IS_NEARER else min(values)
    return {
        "mean": mean_interval(values),
        "worst": pairs[values.index(worst)].ours.name,
        "per_picture": {pair.ours.name: value for pair, value in zip(pairs, values, strict=True)},
    }


def _table(found: Mapping[str, Mapping[str, Any]], num_pairs: int) -> Any:
    from rich.table import Table

    table = Table(title=f"{num_pairs} pair(s); of the mean the 95 % bootstrap interval", title_justify="left")
    for column in ("", "mean", "interval", "worst", "of"):
        table.add_column(column, justify="right" if column in ("mean", "interval", "worst") else "left")
    for name, one in found.items():
        title, form = UNITS[name]
        mean, low, high = (format(value, form) for value in one["mean"])
        worst = format(one["per_picture"][one["worst"]], form)
        table.add_row(title, mean, f"{low} to {high}", worst, one["worst"])
    return table
