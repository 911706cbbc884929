"""Fresh keys and values to their places, in one launch; on the way the keys are normalised and turned, if asked for."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ras_dit.kernels.launch import on_device_of


@triton.jit
def _merge_kernel(  # type: ignore[no-untyped-def]
    kept_key,
    kept_value,
    key,
    value,
    positions,
    weight,
    cos,
    sin,
    num_rows,
    width,
    kk_r,
    kk_h,
    kk_l,
    kk_d,
    kv_r,
    kv_h,
    kv_l,
    kv_d,
    k_r,
    k_h,
    k_p,
    k_d,
    v_r,
    v_h,
    v_p,
    v_d,
    p_r,
    p_p,
    w_d,
    c_r,
    c_p,
    c_d,
    s_r,
    s_p,
    s_d,
    norm_eps,
    has_norm: tl.constexpr,
    has_weight: tl.constexpr,
    rotation: tl.constexpr,
    is_double: tl.constexpr,
    block_rows: tl.constexpr,
    block_width: tl.constexpr,
):
    """One program: ``block_rows`` fresh rows of one head of one row of the batch."""
    kind: tl.constexpr = tl.float64 if is_double else tl.float32
    p = tl.program_id(0).to(tl.int64) * block_rows + tl.arange(0, block_rows)
    h = tl.program_id(1).to(tl.int64)
    r = tl.program_id(2).to(tl.int64)
    d = tl.arange(0, block_width).to(tl.int64)
    in_rows, in_width = p < num_rows, d < width
    inside = in_rows[:, None] & in_width[None, :]
    place = tl.load(positions + r * p_r + p * p_p, mask=in_rows, other=0)

    v = tl.load(value + r * v_r + h * v_h + p[:, None] * v_p + d[None, :] * v_d, mask=inside, other=0.0)
    at = kept_value + r * kv_r + h * kv_h + place[:, None] * kv_l + d[None, :] * kv_d
    tl.store(at, v.to(kept_value.dtype.element_ty), mask=inside)

    row = key + r * k_r + h * k_h + p[:, None] * k_p
    k = tl.load(row + d[None, :] * k_d, mask=inside, other=0.0)
    if has_norm or rotation != 0:
        k = k.to(kind)
        scale = tl.full([block_rows], 1.0, kind)
        if has_norm:
            scale = 1.0 / tl.sqrt(tl.sum(k * k, axis=1) / width + norm_eps)
            k = k * scale[:, None]
            if has_weight:
                k = k * tl.load(weight + d * w_d, mask=in_width, other=0.0).to(kind)[None, :]
        if rotation != 0:
            half = width // 2
            if rotation == 1:
                is_first = d % 2 == 0
                other = tl.where(is_first, d + 1, d - 1)
            else:
                is_first = d < half
                other = tl.where(is_first, d + half, d - half)
            partner = tl.load(row + other[None, :] * k_d, mask=inside, other=0.0).to(kind) * scale[:, None]
            if has_weight:
                partner = partner * tl.load(weight + other * w_d, mask=in_width, other=0.0).to(kind)[None, :]
            partner = tl.where(is_first[None, :], -partner, partner)
            c = tl.load(cos + r * c_r + p[:, None] * c_p + d[None, :] * c_d, mask=inside, other=0.0).to(kind)
            s = tl.load(sin + r * s_r + p[:, None] * s_p + d[None, :] * s_d, mask=inside, other=0.0).to(kind)
            k = k * c + partner * s
    at = kept_key + r * kk_r + h * kk_h + place[:, None] * kk_l + d[None, :] * kk_d
    tl.store(at, k.to(kept_key.dtype.element_ty), mask=inside)


def merge_rows(
    kept_key: torch.Tensor,
    kept_value: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    positions: torch.Tensor,
    *,
    norm_eps: float | None = None,
    norm_weight: torch.Tensor | None = None,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
    is_interleaved: bool = True,
) -> None:
    """See `ras_dit.kernels.reference.merge_rows`."""
    num_batch, num_heads, num_rows, width = key.shape
    if not key.numel():
        return
    is_turned = cos is not None and sin is not None
    has_weight = norm_eps is not None and norm_weight is not None
    weight = norm_weight if norm_weight is not None and has_weight else key
    cos = cos if cos is not None and is_turned else key
    sin = sin if sin is not None and is_turned else key
    block_width = 1 << (width - 1).bit_length()
    block_rows = max(1, 2048 // block_width)
    with on_device_of(key):
        _merge_kernel[(-(-num_rows // block_rows), num_heads, num_batch)](
            kept_key,
            kept_value,
            key,
            value,
            positions,
            weight,
            cos,
            sin,
            num_rows,
            width,
            *kept_key.stride(),
            *kept_value.stride(),
            *key.stride(),
            *value.stride(),
            positions.stride(0) if len(positions) > 1 else 0,
            positions.stride(1),
            weight.stride(-1),
            *_table_strides(cos),
            *_table_strides(sin),
            0.0 if norm_eps is None else float(norm_eps),
            has_norm=norm_eps is not None,
            has_weight=has_weight,
            rotation=(1 if is_interleaved else 2) if is_turned else 0,
            is_double=key.dtype == torch.float64,  # a flag: a compiled graph takes no Triton type as an argument
            block_rows=block_rows,
            block_width=block_width,
        )


def _table_strides(table: torch.Tensor) -> tuple[int, int, int]:
    """Strides of a rotary table [P, d] or [R, P, d] along the batch, its rows and d."""
    is_shared = table.ndim == 2 or len(table) == 1
    return 0 if is_shared else table.stride(0), table.stride(-2), table.stride(-1)
