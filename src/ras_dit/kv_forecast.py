"""How cached keys and values move on with the noise level: along the line through the last two computed ones."""

from __future__ import annotations

import functools

import torch

from ras_dit.rows import RowIndex


class KVAdvance:
    """How keys and values are carried from one transformer call of a branch to the next: along a line in sigma.

    Args:
        change: sigma by which the slope of every token is followed [R, N].
        followed: sigma by which it has then been followed since they were computed, as a share of what passed [R, N].
        per_sigma: one over the sigma that passed, 0 where none did [R, N].
    """

    def __init__(self, change: torch.Tensor, followed: torch.Tensor, per_sigma: torch.Tensor) -> None:
        self.change, self.followed, self.per_sigma = change, followed, per_sigma
        self._made: dict[object, tuple[torch.Tensor, ...]] = {}

    @functools.cached_property
    def twice(self) -> KVAdvance:
        """The same for two grids side by side."""
        return KVAdvance(*(torch.cat([each, each], dim=1) for each in (self.change, self.followed, self.per_sigma)))

    def of_batch_rows(self, which: slice) -> KVAdvance:
        """The same for some rows of the batch."""
        return KVAdvance(self.change[which], self.followed[which], self.per_sigma[which])

    def of_rows(
        self, rows: RowIndex, num_heads: int, length: int, is_flat: bool, dtype: torch.dtype
    ) -> tuple[torch.Tensor, ...]:
        """``followed`` and ``per_sigma`` of the rows that `KVCache` writes: [1, 1, K, 1] if all rows of the batch are
        alike, else flat [R * H * K, 1]."""
        key = (rows.num_active, num_heads, length, is_flat, dtype)
        if key not in self._made:
            self._made[key] = tuple(
                self._taken(each, rows, num_heads, length, is_flat).to(dtype)
                for each in (self.followed, self.per_sigma)
            )
        return self._made[key]

    def _taken(self, values: torch.Tensor, rows: RowIndex, num_heads: int, length: int, is_flat: bool) -> torch.Tensor:
        if isinstance(rows.offset, int):
            fresh = values.gather(1, rows.active)
        else:  # text rows move as well; nobody reads their slope
            fresh = self._placed(values, rows, length).gather(1, rows.positions(length))
        fresh = (fresh if is_flat else fresh[:1])[:, None, :, None]
        return fresh.expand(-1, num_heads, -1, -1).reshape(-1, 1) if is_flat else fresh

    def of_sequence(self, rows: RowIndex, length: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """``change``, ``followed`` and ``per_sigma`` of all rows of a sequence [R, 1, length, 1]; 0 beside the grid."""
        key = ("sequence", length, rows.offset if isinstance(rows.offset, int) else None, dtype)
        if key not in self._made:
            self._made[key] = tuple(
                self._placed(each, rows, length)[:, None, :, None].to(dtype)
                for each in (self.change, self.followed, self.per_sigma)
            )
        return self._made[key]

    def _placed(self, values: torch.Tensor, rows: RowIndex, length: int) -> torch.Tensor:
        offset = rows.offset[:, None] if isinstance(rows.offset, torch.Tensor) else rows.offset
        at = torch.arange(rows.num_tokens, device=values.device) + offset
        return values.new_zeros(len(values), length).scatter(1, at.expand(len(values), -1), values)


class KVProgress:
    """How far the keys and values of every token have been carried since they were computed.

    Args:
        num_rows, num_tokens: R and N.
        sigma: where all of them were computed.

    Attributes:
        since: sigma at which they were last computed [R, N].
        gap: sigma between that and the time before, over which their slope was measured [R, N]; 0 where none was.
        followed: sigma by which that slope has been followed since [R, N].
    """

    def __init__(self, num_rows: int, num_tokens: int, sigma: float, device: torch.device) -> None:
        self.since = torch.full((num_rows, num_tokens), sigma, device=device)
        self.gap = torch.zeros_like(self.since)
        self.followed = torch.zeros_like(self.since)

    def advance(self, sigma: float, damping: float, reach: float | None) -> KVAdvance:
        """Carry them on.

        Args:
            sigma: of the call under way.
            damping: factor on their slopes.
            reach: no slope is followed farther than this times the distance over which it was measured.
        """
        passed = sigma - self.since
        limit = torch.full_like(passed, torch.inf) if reach is None else reach * self.gap.abs()
        followed = damping * passed.clamp(-limit, limit)
        change, self.followed = followed - self.followed, followed
        is_new = passed != 0
        per_sigma = torch.where(is_new, 1 / passed, torch.zeros_like(passed))
        return KVAdvance(change, torch.where(is_new, followed * per_sigma, torch.ones_like(passed)), per_sigma)

    def record(self, sigma: float, is_active: torch.Tensor | None = None) -> None:
        """Some tokens' keys and values were computed.

        Args:
            sigma: where.
            is_active: [R, N], None for all.
        """
        passed = sigma - self.since
        is_new = passed != 0 if is_active is None else is_active & (passed != 0)
        self.gap = torch.where(is_new, passed, self.gap)
        self.since = torch.where(is_new, torch.full_like(passed, sigma), self.since)
        self.followed = torch.where(is_new, torch.zeros_like(passed), self.followed)
