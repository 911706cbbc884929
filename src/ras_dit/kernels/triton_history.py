"""The history's update, the forecast of tokens that were not computed and the full noise, in one pass over them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ras_dit.kernels.launch import on_device_of


@triton.jit
def _divided(difference, gap):  # type: ignore[no-untyped-def]
    """A divided difference, 0 where the older value is missing (its sigma is NaN)."""
    return tl.where((gap != gap)[:, None], 0.0, difference / gap[:, None])


@triton.jit
def _history_kernel(  # type: ignore[no-untyped-def]
    values,
    sigmas,
    tokens,
    is_active,
    out,
    sigma,
    at,
    mean_at,
    damping,
    reach,
    num_rows,
    num_tokens,
    width,
    v_depth,
    v_r,
    v_n,
    v_d,
    s_depth,
    s_r,
    s_n,
    t_r,
    t_n,
    t_d,
    a_r,
    a_n,
    o_r,
    o_n,
    o_d,
    depth: tl.constexpr,
    order: tl.constexpr,
    records: tl.constexpr,
    has_reach: tl.constexpr,
    gives_mean: tl.constexpr,
    block_rows: tl.constexpr,
    block_width: tl.constexpr,
):
    """One program: ``block_rows`` tokens over their whole width, so that nobody else reads the sigmas it writes."""
    row = tl.program_id(0).to(tl.int64) * block_rows + tl.arange(0, block_rows)
    in_rows = row < num_rows
    r, n = row // num_tokens, row % num_tokens
    at_sigma = sigmas + r * s_r + n * s_n
    s0 = tl.load(at_sigma, mask=in_rows, other=0.0)
    s1, s2 = s0, s0
    if depth > 1:
        s1 = tl.load(at_sigma + s_depth, mask=in_rows, other=0.0)
    if depth > 2:
        s2 = tl.load(at_sigma + 2 * s_depth, mask=in_rows, other=0.0)
    active = row < 0
    if records:
        active = in_rows & (tl.load(is_active + r * a_r + n * a_n, mask=in_rows, other=0) != 0)
    is_new = active & (s0 != sigma)
    gap = s0 - s1
    h = at - s0
    if has_reach:
        limit = tl.where(gap != gap, float("inf"), reach * tl.abs(gap))
        h = tl.minimum(tl.maximum(h, -limit), limit)
    curve = h * tl.where(gap != gap, 0.0, h + s0 - s1)
    before = tl.where(is_new, s0, s1)  # sigma of the second newest value once this one is recorded

    for begin in range(0, width, block_width):
        d = begin + tl.arange(0, block_width).to(tl.int64)
        inside = in_rows[:, None] & (d < width)[None, :]
        at_value = values + r[:, None] * v_r + n[:, None] * v_n + d[None, :] * v_d
        v0 = tl.load(at_value, mask=inside, other=0.0)
        v1 = v0
        if depth > 1:
            v1 = tl.load(at_value + v_depth, mask=inside, other=0.0)
        filled = v0
        if order > 0:
            slope = _divided(v0 - v1, gap)
            change = slope * h[:, None]
            if order > 1:
                v2 = tl.load(at_value + 2 * v_depth, mask=inside, other=0.0)
                curvature = _divided(slope - _divided(v1 - v2, s1 - s2), s0 - s2)
                change = change + curvature * curve[:, None]
            filled = v0 + damping * change
        if records:
            written = inside & active[:, None]
            at_token = tokens + r[:, None] * t_r + n[:, None] * t_n + d[None, :] * t_d
            token = tl.load(at_token, mask=written, other=0.0).to(tl.float32)
            shifted = inside & is_new[:, None]
            if depth > 2:
                tl.store(at_value + 2 * v_depth, v1, mask=shifted)
            if depth > 1:
                tl.store(at_value + v_depth, v0, mask=shifted)
            tl.store(at_value, token, mask=written)
            fresh = token
            if gives_mean:
                slope = _divided(token - tl.where(is_new[:, None], v0, v1), sigma - before)
                fresh = token + slope * (mean_at - sigma)
            filled = tl.where(active[:, None], fresh, filled)
        at_out = out + r[:, None] * o_r + n[:, None] * o_n + d[None, :] * o_d
        tl.store(at_out, filled.to(out.dtype.element_ty), mask=inside)

    if records:
        tl.debug_barrier()  # every warp of the program has read the sigmas by now; one of them writes them
        if depth > 2:
            tl.store(at_sigma + 2 * s_depth, s1, mask=is_new)
        if depth > 1:
            tl.store(at_sigma + s_depth, s0, mask=is_new)
        tl.store(at_sigma, tl.where(active, sigma, s0), mask=active)


def record_and_fill(
    values: torch.Tensor,
    sigmas: torch.Tensor,
    tokens: torch.Tensor | None,
    is_active: torch.Tensor | None,
    sigma: float,
    at: float,
    order: int,
    damping: float,
    reach: float | None,
    mean_at: float | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """See `ras_dit.kernels.reference.record_and_fill`."""
    depth, num_batch, num_tokens, width = values.shape
    assert order < depth
    assert mean_at is None or depth > 1
    dtype = dtype or (values.dtype if tokens is None else tokens.dtype)
    out = torch.empty(num_batch, num_tokens, width, dtype=dtype, device=values.device)
    if not out.numel():
        return out
    records = tokens is not None and is_active is not None
    tokens = tokens if tokens is not None and records else values[0]
    active = is_active.view(torch.uint8) if is_active is not None and records else sigmas[0]
    block_width = min(triton.next_power_of_2(width), 128)
    block_rows = max(1, 1024 // block_width)
    num_rows = num_batch * num_tokens
    with on_device_of(values):
        _history_kernel[(triton.cdiv(num_rows, block_rows),)](
            values,
            sigmas,
            tokens,
            active,
            out,
            float(sigma),
            float(at),
            0.0 if mean_at is None else float(mean_at),
            float(damping),
            0.0 if reach is None else float(reach),
            num_rows,
            num_tokens,
            width,
            *values.stride(),
            *sigmas.stride(),
            *tokens.stride(),
            *active.stride(),
            *out.stride(),
            depth=depth,
            order=0 if damping == 0 else order,
            records=records,
            has_reach=reach is not None,
            gives_mean=mean_at is not None,
            block_rows=block_rows,
            block_width=block_width,
        )
    return out
