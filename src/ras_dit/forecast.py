"""What a token that is not computed is given: its last noise, or that noise extrapolated in sigma."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ras_dit.geometry import TokenGrid


class ForecastRule(NamedTuple):
    """How the tokens of an evaluation are forecast: the arguments of `TokenHistory.forecast`."""

    sigma: float
    order: int
    damping: float
    reach: float | None


class TokenHistory:
    """The last computed values of every token, newest first, each with the sigma it was computed at.

    Tokens are computed at different steps, so every token has sigmas of its own. A missing value has sigma NaN.

    Attributes:
        values: [depth, R, N, D] float32.
        sigmas: [depth, R, N] float32.
    """

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.values = torch.empty(0)
        self.sigmas = torch.empty(0)

    @property
    def is_empty(self) -> bool:
        return self.values.numel() == 0

    def record(self, tokens: torch.Tensor, sigma: float, is_active: torch.Tensor | None = None) -> None:
        """Take in what was just computed.

        Args:
            tokens: [R, N, D], any dtype; only rows of active tokens are read.
            sigma: where they were computed. A second value at a token's newest sigma replaces the first.
            is_active: [R, N] bool, None for all.
        """
        tokens = tokens.float()
        if self.is_empty:
            assert is_active is None, "the first record of a history covers all tokens"
            self.values = tokens.new_zeros(self.depth, *tokens.shape)
            self.sigmas = tokens.new_full((self.depth, *tokens.shape[:2]), float("nan"))
        earlier_values, earlier_sigmas = self.values, self.sigmas
        self.values, self.sigmas = torch.empty_like(earlier_values), torch.empty_like(earlier_sigmas)
        if is_active is None:
            self.values[0].copy_(tokens)
            self.sigmas[0].fill_(sigma)
        else:
            torch.where(is_active[..., None], tokens, earlier_values[0], out=self.values[0])
            torch.where(is_active, tokens.new_full((), sigma), earlier_sigmas[0], out=self.sigmas[0])
        if self.depth == 1:
            return
        is_new = earlier_sigmas[0] != self.sigmas[0]  # of tokens that are not active it is what it was
        is_shifted = is_new if is_active is None else is_new & is_active
        for age in range(1, self.depth):
            torch.where(is_shifted[..., None], earlier_values[age - 1], earlier_values[age], out=self.values[age])
            torch.where(is_shifted, earlier_sigmas[age - 1], earlier_sigmas[age], out=self.sigmas[age])

    def forecast(self, sigma: float, order: int, damping: float, reach: float | None = None) -> torch.Tensor:
        """Values at ``sigma`` by Newton's divided differences through the last ``order + 1`` computed ones.

        A token with fewer values gets the highest order that those allow.

        Args:
            sigma: where the values are wanted.
            order: 0 reuses, 1 is a line, 2 a parabola; at most ``depth - 1``.
            damping: factor on everything beyond the last value, in [0, 1].
            reach: a token's values are not extrapolated farther than this times the distance of its last two; None for
                any far.

        Returns:
            [R, N, D] float32.
        """
        last = self.values[0]
        if order == 0 or damping == 0:
            return last
        h = sigma - self.sigmas[0]
        if reach is not None:
            limit = reach * (self.sigmas[0] - self.sigmas[1]).abs().nan_to_num(torch.inf)
            h = h.clamp(-limit, limit)
        slope = _divided_difference(self.values[0], self.values[1], self.sigmas[0] - self.sigmas[1])
        change = slope * h[..., None]
        if order == 2:
            earlier = _divided_difference(self.values[1], self.values[2], self.sigmas[1] - self.sigmas[2])
            curvature = _divided_difference(slope, earlier, self.sigmas[0] - self.sigmas[2])
            change = change + curvature * (h * (h + self.sigmas[0] - self.sigmas[1]).nan_to_num())[..., None]
        return last + damping * change


def _divided_difference(newer: torch.Tensor, older: torch.Tensor, gap: torch.Tensor) -> torch.Tensor:
    """(newer - older) / gap per token, 0 where the older value is missing."""
    difference = (newer - older) / gap[..., None]
    return torch.where(gap.isnan()[..., None], torch.zeros_like(difference), difference)


def missed_nearby(missed: torch.Tensor, is_active: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
    """What the forecast missed around each token: the mean over the computed ones of its 3 x 3 neighbours in a frame.

    Args:
        missed: computed minus forecast noise [R, N, D]; rows of tokens that were not computed are not read.
        is_active: computed tokens [R, N].
        grid: where the tokens lie.

    Returns:
        [R, N, D], 0 where no neighbour was computed.
    """
    weight = is_active[..., None].to(missed.dtype)
    weighed = torch.where(is_active[..., None], missed, torch.zeros_like(missed))
    total = _sum_nearby(torch.cat([weighed, weight], dim=-1), grid)
    return total[..., :-1] / total[..., -1:].clamp_min(1)


def _sum_nearby(tokens: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
    """Sums over 3 x 3 tokens of a frame [R, N, D]."""
    num_rows, _, depth = tokens.shape
    frames = tokens.reshape(num_rows * grid.num_frames, grid.height, grid.width, depth).permute(0, 3, 1, 2)
    sums = F.avg_pool2d(frames, 3, stride=1, padding=1, divisor_override=1)
    return sums.permute(0, 2, 3, 1).reshape(tokens.shape)
