"""A matrix product whose rows are written where they belong: the paper's kernel. Not wired in; see docs/kernels.md."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ras_dit.kernels.launch import on_device_of
from ras_dit.kernels.tile import Tile


@triton.jit
def _linear_kernel(  # type: ignore[no-untyped-def]
    x,
    weight,
    bias,
    positions,
    out,
    num_rows,
    rows_per_item,
    num_columns,
    depth,
    x_r,
    x_k,
    x_c,
    w_e,
    w_c,
    b_e,
    p_r,
    p_k,
    o_r,
    o_n,
    o_e,
    has_bias: tl.constexpr,
    kind: tl.constexpr,
    factor: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    block_depth: tl.constexpr,
    group: tl.constexpr,
):
    """One program: a tile of the product. Rows of all items of the batch are counted through, so no tile runs empty."""
    num_row_tiles, num_column_tiles = tl.cdiv(num_rows, block_rows), tl.cdiv(num_columns, block_columns)
    # tiles that follow each other share columns of the weight, which then stay in the cache
    number = tl.program_id(0)
    first = number // (group * num_column_tiles) * group
    size = min(num_row_tiles - first, group)
    within = number % (group * num_column_tiles)
    m = (first + within % size).to(tl.int64) * block_rows + tl.arange(0, block_rows)
    e = (within // size).to(tl.int64) * block_columns + tl.arange(0, block_columns)
    c = tl.arange(0, block_depth).to(tl.int64)
    in_rows, in_columns = m < num_rows, e < num_columns
    r, k = m // rows_per_item, m % rows_per_item

    total = tl.zeros((block_rows, block_columns), dtype=kind)
    for begin in range(0, depth, block_depth):
        in_depth = c < depth - begin
        at = x + r[:, None] * x_r + k[:, None] * x_k + (begin + c)[None, :] * x_c
        left = tl.load(at, mask=in_rows[:, None] & in_depth[None, :], other=0.0)
        at = weight + e[None, :] * w_e + (begin + c)[:, None] * w_c
        right = tl.load(at, mask=in_depth[:, None] & in_columns[None, :], other=0.0)
        total = tl.dot(left.to(factor), right.to(factor), total, input_precision="ieee", out_dtype=kind)
    if has_bias:
        total += tl.load(bias + e * b_e, mask=in_columns, other=0.0).to(kind)[None, :]
    place = tl.load(positions + r * p_r + k * p_k, mask=in_rows, other=0)
    at = out + r[:, None] * o_r + place[:, None] * o_n + e[None, :] * o_e
    tl.store(at, total.to(out.dtype.element_ty), mask=in_rows[:, None] & in_columns[None, :])


def linear_scatter(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    positions: torch.Tensor,
    out: torch.Tensor,
    *,
    tile: Tile | None = None,
) -> None:
    """See `ras_dit.kernels.reference.linear_scatter`."""
    assert x.dtype == weight.dtype, "a product of two types"
    num_items, rows_per_item, depth = x.shape
    num_rows, num_columns = num_items * rows_per_item, len(weight)
    if not num_rows or not num_columns:
        return
    tile = tile or Tile(rows=128 if num_rows > 64 else 64)
    with on_device_of(x):
        _linear_kernel[(triton.cdiv(num_rows, tile.rows) * triton.cdiv(num_columns, tile.columns),)](
            x,
            weight,
            weight if bias is None else bias,
            positions,
            out,
            num_rows,
            rows_per_item,
            num_columns,
            depth,
            *x.stride(),
            *weight.stride(),
            0 if bias is None else bias.stride(0),
            positions.stride(0) if len(positions) > 1 else 0,
            positions.stride(1),
            *out.stride(),
            has_bias=bias is not None,
            kind=tl.float64 if x.dtype == torch.float64 else tl.float32,
            factor=_factor_type(x.dtype),
            block_rows=tile.rows,
            block_columns=tile.columns,
            block_depth=tile.depth,
            group=8,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )


def _factor_type(dtype: torch.dtype) -> tl.dtype:
    """What the factors are multiplied as: their own type, but Triton's interpreter cannot multiply bfloat16."""
    is_interpreted = not isinstance(_linear_kernel, triton.JITFunction)
    if dtype == torch.bfloat16:
        return tl.float32 if is_interpreted else tl.bfloat16
    return {torch.float64: tl.float64, torch.float32: tl.float32, torch.float16: tl.float16}[dtype]
