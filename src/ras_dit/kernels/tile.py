"""How a matrix product is cut into tiles."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """One program's share of a matrix product, and how the GPU runs it.

    Attributes:
        rows: of the output, at least 16.
        columns: of the output, at least 16.
        depth: of the inner dimension per step, at least 16.
        num_warps: warps of a program.
        num_stages: loads in flight.
    """

    rows: int = 128
    columns: int = 128
    depth: int = 32
    num_warps: int = 8
    num_stages: int = 3
