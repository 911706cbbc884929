"""A linear layer whose rows go to their places."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.tensors import DEVICE, NAN, assert_close, dtypes, laid, layouts, normal, places, seeds
from ras_dit.kernels import REFERENCE, Tile, triton_operations

LINEAR = triton_operations().linear_scatter
TILES = [None, Tile(16, 16, 16, 1, 1), Tile(32, 16, 64, 2, 2)]


@settings(max_examples=50, deadline=None)
@given(
    seeds,
    dtypes,
    layouts,
    layouts,
    st.integers(1, 3),
    st.integers(1, 20),
    st.integers(0, 9),
    st.integers(1, 40),
    st.integers(1, 40),
    st.booleans(),
    st.booleans(),
    st.sampled_from(TILES),
)
def test_linear_is_its_twin(
    seed: int,
    dtype: torch.dtype,
    layout: str,
    out_layout: str,
    num_items: int,
    num_rows: int,
    num_others: int,
    depth: int,
    num_columns: int,
    has_bias: bool,
    is_shared: bool,
    tile: Tile | None,
) -> None:
    length = num_rows + num_others
    x = laid(normal(seed, num_items, num_rows, depth, dtype=dtype), layout).tensor
    weight = laid(normal(seed + 1, num_columns, depth, dtype=dtype), layout).tensor
    bias = laid(normal(seed + 2, num_columns, dtype=dtype), layout).tensor if has_bias else None
    positions = laid(places(seed, 1 if is_shared else num_items, length, num_rows), layout).tensor
    empty = torch.full((num_items, length, num_columns), NAN, dtype=dtype)
    out, expected = laid(empty, out_layout), empty.to(DEVICE)
    LINEAR(x, weight, bias, positions, out.tensor, tile=tile)
    REFERENCE.linear_scatter(x, weight, bias, positions, expected, tile=tile)
    assert int(expected.isnan().sum()) == num_items * num_others * num_columns
    assert_close(out.tensor, expected)
    assert out.is_alone()


def test_the_tiles_of_many_rows_cover_all_of_them() -> None:
    """More tiles of rows than one group has, and a last group that is not full."""
    x, weight = normal(0, 2, 83, 5).to(DEVICE), normal(1, 33, 5).to(DEVICE)
    positions = places(2, 2, 90, 83).to(DEVICE)
    out, expected = (torch.full((2, 90, 33), NAN, device=DEVICE) for _ in range(2))
    LINEAR(x, weight, None, positions, out, tile=Tile(16, 16, 16, 1, 1))
    REFERENCE.linear_scatter(x, weight, None, positions, expected)
    assert_close(out, expected)


def test_no_rows_write_nothing() -> None:
    out = torch.full((2, 3, 4), NAN, device=DEVICE)
    x, weight = torch.ones(2, 0, 5, device=DEVICE), torch.ones(4, 5, device=DEVICE)
    LINEAR(x, weight, None, torch.zeros(1, 0, dtype=torch.long, device=DEVICE), out)
    assert out.isnan().all()
