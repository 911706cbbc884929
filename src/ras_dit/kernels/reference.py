"""What the kernels compute, in plain torch and as simply as it can be said: each kernel's twin, same arguments (that of
`top_k` is `ras_dit.selection.top_k`).

Every argument may have any strides and any floating type; sums run in float32 (float64 for float64 inputs).
"""

from __future__ import annotations

import torch
from torch.nn import functional

from ras_dit.importance import SAME_LEVEL
from ras_dit.kernels.tile import Tile


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
    """Write fresh rows of keys and values at their places in the kept ones; other rows are not touched.

    The keys may be normalised and turned on their way: ``RMSNorm`` over d first, then a rotary embedding.

    Args:
        kept_key: [R, H, L, d], written in place.
        kept_value: [R, H, L, d], written in place.
        key: fresh rows [R, H, P, d].
        value: fresh rows [R, H, P, d].
        positions: place of every fresh row in the kept sequence, LongTensor [R, P] or [1, P]; no place comes twice.
        norm_eps: added to the mean square; None does not normalise.
        norm_weight: [d], None for ones.
        cos: rotary table [P, d], or one per row of the batch [R, P, d]; None does not turn.
        sin: likewise.
        is_interleaved: which two numbers a rotation mixes: neighbours (2i, 2i + 1), else the halves (i, i + d / 2).
    """
    fresh = key.to(_sum_type(key))
    if norm_eps is not None:
        fresh = fresh * torch.rsqrt(fresh.square().mean(dim=-1, keepdim=True) + norm_eps)
        if norm_weight is not None:
            fresh = fresh * norm_weight.to(fresh.dtype)
    if cos is not None and sin is not None:
        cos, sin = (table if table.ndim == 2 else table[:, None] for table in (cos, sin))
        fresh = fresh * cos.to(fresh.dtype) + _partners(fresh, is_interleaved) * sin.to(fresh.dtype)
    rows = positions.expand(key.shape[0], -1)
    for number, places in enumerate(rows):
        kept_key[number, :, places] = fresh[number].to(kept_key.dtype)
        kept_value[number, :, places] = value[number].to(kept_value.dtype)


def _partners(x: torch.Tensor, is_interleaved: bool) -> torch.Tensor:
    """What the sine is multiplied with: of every pair (a, b) that a rotation mixes, (-b, a)."""
    if is_interleaved:
        return torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)
    half = x.shape[-1] // 2
    return torch.cat([-x[..., half:], x[..., :half]], dim=-1)


def linear_scatter(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    positions: torch.Tensor,
    out: torch.Tensor,
    *,
    tile: Tile | None = None,
) -> None:
    """A linear layer whose rows go to their places in a full-size output; other rows are not touched.

    The weights are taken as they are: ask `is_plain_linear` first, so that no adapter is passed over.

    Args:
        x: computed rows [R, K, C].
        weight: [E, C].
        bias: [E], None without one.
        positions: place of every computed row, LongTensor [R, K] or [1, K]; no place comes twice.
        out: [R, N, E], written in place.
        tile: how the kernel cuts the product; None chooses. Means nothing here.
    """
    kind = _sum_type(x)
    y = functional.linear(x.to(kind), weight.to(kind), None if bias is None else bias.to(kind))
    for number, places in enumerate(positions.expand(x.shape[0], -1)):
        out[number, places] = y[number].to(out.dtype)


def predicted_error(values: torch.Tensor, sigmas: torch.Tensor, sigma_next: float) -> torch.Tensor:
    """How far each token's last noise will be off at ``sigma_next``: see `ras_dit.importance.predicted_error`.

    Args:
        values: last computed noise, newest first [depth, B, N, D].
        sigmas: where it was computed [depth, B, N] float32, NaN where a value is missing.
        sigma_next: sigma of the evaluation to choose tokens for.

    Returns:
        [B, N] float32.
    """
    last = values[0].to(_sum_type(values))
    slope = last.norm(dim=-1)
    if len(values) > 1:
        gap = (sigmas[0] - sigmas[1]).abs()
        change = (last - values[1].to(last.dtype)).norm(dim=-1)
        slope = torch.where(gap.isnan(), slope, change / gap)
    return (slope * (sigma_next - sigmas[0]).abs().clamp_min(SAME_LEVEL)).float()


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
    """Take what was computed into a history of noise, and forecast the tokens that were not: noise of all of them.

    Args:
        values: last computed noise, newest first [depth, R, N, D] float32, written in place.
        sigmas: where it was computed [depth, R, N] float32, NaN where a value is missing; written in place.
        tokens: noise just computed [R, N, D]; only rows of active tokens are read. None for a skipped step.
        is_active: computed tokens [R, N] bool; None for a skipped step.
        sigma: where they were computed.
        at: where the others are forecast.
        order: of the forecast: 0 reuses, 1 is a line, 2 a parabola; at most ``depth - 1``.
        damping: factor on everything beyond the last value.
        reach: a forecast goes at most this times the distance of a token's last two values; None for any far.
        mean_at: active tokens are given the value at this sigma of the line through their last two; None gives what
            was computed.
        dtype: of the result; None is that of ``tokens``.

    Returns:
        [R, N, D].
    """
    dtype = dtype or (values.dtype if tokens is None else tokens.dtype)
    filled = _forecast(values, sigmas, at, order, damping, reach).to(dtype)
    if tokens is None or is_active is None:
        return filled
    here = torch.full_like(sigmas[0], sigma)
    is_new = is_active & (sigmas[0] != here)
    for place in range(len(values) - 1, 0, -1):
        values[place] = torch.where(is_new[..., None], values[place - 1], values[place])
        sigmas[place] = torch.where(is_new, sigmas[place - 1], sigmas[place])
    values[0] = torch.where(is_active[..., None], tokens.to(values.dtype), values[0])
    sigmas[0] = torch.where(is_active, here, sigmas[0])
    fresh = tokens if mean_at is None else _forecast(values, sigmas, mean_at, 1, 1.0, None)
    return torch.where(is_active[..., None], fresh.to(dtype), filled)


def _forecast(
    values: torch.Tensor, sigmas: torch.Tensor, at: float, order: int, damping: float, reach: float | None
) -> torch.Tensor:
    """Newton's divided differences through the last values, as `ras_dit.forecast` has them [R, N, D]."""
    if order == 0 or damping == 0:
        return values[0].clone()
    h, gap = at - sigmas[0], sigmas[0] - sigmas[1]
    if reach is not None:
        limit = reach * gap.abs().nan_to_num(torch.inf)
        h = h.clamp(-limit, limit)
    slope = _over(values[0] - values[1], gap)
    change = slope * h[..., None]
    if order == 2:
        curvature = _over(slope - _over(values[1] - values[2], sigmas[1] - sigmas[2]), sigmas[0] - sigmas[2])
        change = change + curvature * (h * (h + sigmas[0] - sigmas[1]).nan_to_num())[..., None]
    return values[0] + damping * change


def _over(difference: torch.Tensor, gap: torch.Tensor) -> torch.Tensor:
    """A divided difference, 0 where the older value is missing."""
    return torch.where(gap.isnan()[..., None], torch.zeros_like(difference), difference / gap[..., None])


def _sum_type(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
