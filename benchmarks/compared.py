"""Methods against a dense run, on batches of whatever: how near they come with how many token-steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from ras_dit.arena import Method, applied
from ras_dit.arena.metrics import MAX_PSNR, better_by, mean_interval


class Batch(Protocol):
    """What to paint."""

    def paint(self, pipe: Any, steps: int) -> np.ndarray:
        """Pictures [B, H, W, 3] in [0, 1]."""

    def psnr(self, pictures: np.ndarray, dense: np.ndarray) -> list[float]:
        """Nearness of every picture to the dense one."""


def psnr_of(pictures: np.ndarray, others: np.ndarray) -> list[float]:
    """PSNR in dB of pictures [B, H, W, 3] in [0, 1], as 8-bit values; at most `MAX_PSNR`."""
    apart = np.round(255 * pictures) - np.round(255 * others)
    errors = np.square(apart / 255).mean(axis=(1, 2, 3))
    return [min(MAX_PSNR, float(-10 * np.log10(max(error, 1e-12)))) for error in errors]


def compared(
    pipe: Any,
    batches: Sequence[Any],
    methods: Mapping[str, Callable[[Any], Method]],
    steps: int,
    against: Mapping[str, str] | str,
) -> list[dict[str, Any]]:
    """Every method on every batch.

    Args:
        pipe: of the batches.
        batches: `Batch`es.
        methods: name -> the method for a batch.
        steps: of the dense run.
        against: name -> the method that it is compared with picture by picture; one name for all.

    Returns:
        Rows with ``name``, ``token_steps``, ``psnr`` and ``better_by`` (mean and
        95 % bootstrap interval; None where there is nothing to compare with), and ``against``.
    """
    values: dict[str, list[float]] = {name: [] for name in methods}
    token_steps = dict.fromkeys(methods, 0.0)
    with tqdm(total=len(batches) * (1 + len(methods)), desc=f"{steps} steps", unit="call") as bar:
        for batch in batches:
            dense = batch.paint(pipe, steps)
            bar.update()
            for name, make in methods.items():
                method = make(batch)
                with applied(pipe, method) as handle:
                    pictures = batch.paint(pipe, method.steps)
                    counted = method.steps if handle is None else handle.trace.token_steps
                token_steps[name] += counted / len(batches)
                values[name] += batch.psnr(pictures, dense)
                bar.update()
    rows = []
    for name in methods:
        other = against if isinstance(against, str) else against.get(name)
        rows.append(
            {
                "name": name,
                "token_steps": token_steps[name],
                "psnr": mean_interval(values[name]),
                "against": other,
                "better_by": better_by(values[name], values[other]) if other in values else None,
            }
        )
        print(f"{name:<44} T {token_steps[name]:5.2f}  {rows[-1]['psnr'][0]:5.1f} dB")
    return rows
