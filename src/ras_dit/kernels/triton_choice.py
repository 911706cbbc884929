"""Scores in one pass over the noise, and the best K of N without a sort.

Score and choice are two launches: a choice needs every score of its image, and those are the work of many programs.
Between them the scores may be filtered, masked and averaged.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ras_dit import selection
from ras_dit.importance import SAME_LEVEL
from ras_dit.kernels.launch import on_device_of

MOST_TOKENS = 16_384
"""More than this does not fit the registers of one program: torch sorts those."""


@triton.jit
def _error_kernel(  # type: ignore[no-untyped-def]
    values,
    sigmas,
    out,
    sigma_next,
    num_tokens,
    width,
    v_depth,
    v_b,
    v_n,
    v_d,
    s_depth,
    s_b,
    s_n,
    has_earlier: tl.constexpr,
    kind: tl.constexpr,
    block_tokens: tl.constexpr,
    block_width: tl.constexpr,
    same_level: tl.constexpr,
):
    """One program: ``block_tokens`` tokens of one image."""
    n = tl.program_id(0).to(tl.int64) * block_tokens + tl.arange(0, block_tokens)
    b = tl.program_id(1).to(tl.int64)
    in_tokens = n < num_tokens
    row = values + b * v_b + n[:, None] * v_n
    size = tl.zeros([block_tokens], dtype=kind)
    change = tl.zeros([block_tokens], dtype=kind)
    for begin in range(0, width, block_width):
        d = begin + tl.arange(0, block_width).to(tl.int64)
        inside = in_tokens[:, None] & (d < width)[None, :]
        last = tl.load(row + d[None, :] * v_d, mask=inside, other=0.0).to(kind)
        size += tl.sum(last * last, axis=1)
        if has_earlier:
            earlier = tl.load(row + v_depth + d[None, :] * v_d, mask=inside, other=0.0).to(kind)
            change += tl.sum((last - earlier) * (last - earlier), axis=1)
    at = sigmas + b * s_b + n * s_n
    newest = tl.load(at, mask=in_tokens, other=0.0)
    slope = tl.sqrt(size)
    if has_earlier:
        gap = tl.abs(newest - tl.load(at + s_depth, mask=in_tokens, other=0.0))
        slope = tl.where(gap != gap, slope, tl.sqrt(change) / gap)
    score = slope * tl.maximum(tl.abs(sigma_next - newest), same_level)
    tl.store(out + b * num_tokens + n, score.to(out.dtype.element_ty), mask=in_tokens)


def predicted_error(values: torch.Tensor, sigmas: torch.Tensor, sigma_next: float) -> torch.Tensor:
    """See `ras_dit.kernels.reference.predicted_error`."""
    depth, num_images, num_tokens, width = values.shape
    out = torch.empty(num_images, num_tokens, dtype=torch.float32, device=values.device)
    if not out.numel():
        return out
    block_width = min(triton.next_power_of_2(width), 256)
    block_tokens = max(1, 2048 // block_width)
    with on_device_of(values):
        _error_kernel[(triton.cdiv(num_tokens, block_tokens), num_images)](
            values,
            sigmas,
            out,
            float(sigma_next),
            num_tokens,
            width,
            *values.stride(),
            *sigmas.stride(),
            has_earlier=depth > 1,
            kind=tl.float64 if values.dtype == torch.float64 else tl.float32,
            block_tokens=block_tokens,
            block_width=block_width,
            same_level=SAME_LEVEL,
        )
    return out


@triton.jit
def _top_k_kernel(  # type: ignore[no-untyped-def]
    scores,
    out,
    num_tokens,
    num_active,
    s_b,
    s_n,
    bits: tl.constexpr,
    block: tl.constexpr,
):
    """One program: an image. The K-th highest score is found bit by bit; all above it are in, and the first equal ones.

    Scores become unsigned integers of the same order: those of negative ones are inverted, the others get the top bit.
    """
    image = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, block)
    inside = n < num_tokens
    score = tl.load(scores + image * s_b + n.to(tl.int64) * s_n, mask=inside, other=0.0)
    if bits == 32:
        score = score.to(tl.float32)
        score = tl.where(score == 0.0, 0.0, score).to(tl.float32)  # minus zero equals zero
        raw = score.to(tl.uint32, bitcast=True)
        one = tl.full([], 1, tl.uint32)
        threshold = tl.full([], 0, tl.uint32)
    else:
        score = tl.where(score == 0.0, 0.0, score).to(tl.float64)
        raw = score.to(tl.uint64, bitcast=True)
        one = tl.full([], 1, tl.uint64)
        threshold = tl.full([], 0, tl.uint64)
    top = one << (bits - 1)
    highest = top | (top - one)
    order = tl.where((raw & top) != 0, raw ^ highest, raw | top)
    order = tl.where(score != score, highest, order)  # whatever its sign, NaN is the highest
    for step in range(bits):
        higher = threshold | (one << (bits - 1 - step))
        count = tl.sum((inside & (order >= higher)).to(tl.int32), axis=0)
        threshold = tl.where(count >= num_active, higher, threshold)
    is_above = inside & (order > threshold)
    is_equal = inside & (order == threshold)
    num_wanted = num_active - tl.sum(is_above.to(tl.int32), axis=0)
    is_chosen = is_above | (is_equal & (tl.cumsum(is_equal.to(tl.int32), axis=0) <= num_wanted))
    place = tl.cumsum(is_chosen.to(tl.int32), axis=0) - 1
    tl.store(out + image * num_active + place, n.to(tl.int64), mask=is_chosen)


def top_k(importance: torch.Tensor, num_active: int) -> torch.Tensor:
    """See `ras_dit.selection.top_k`. Up to `MOST_TOKENS` tokens; torch sorts more."""
    num_images, num_tokens = importance.shape
    if num_tokens > MOST_TOKENS:
        return selection.top_k(importance, num_active)
    num_active = min(num_active, num_tokens)
    out = torch.empty(num_images, num_active, dtype=torch.long, device=importance.device)
    if not out.numel():
        return out
    block = triton.next_power_of_2(num_tokens)
    with on_device_of(importance):
        _top_k_kernel[(num_images,)](
            importance,
            out,
            num_tokens,
            num_active,
            *importance.stride(),
            bits=64 if importance.dtype == torch.float64 else 32,
            block=block,
            num_warps=min(max(block // 1024, 4), 16),
        )
    return out
