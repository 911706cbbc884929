"""Keys and values of all tokens, kept between steps; a region step writes its rows in place and reads the whole."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class RowIndex:
    """Which image tokens the rows of a region step are.

    Attributes:
        active: LongTensor [R, K], ascending token ids for every row of the transformer's batch.
        num_tokens: image tokens N of a full sequence.
        is_shared: all rows have the same ids.
    """

    active: torch.Tensor
    num_tokens: int
    is_shared: bool
    _made: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict, compare=False, repr=False)

    @property
    def num_active(self) -> int:
        return self.active.shape[1]

    def gather(self, tokens: torch.Tensor) -> torch.Tensor:
        """Rows [R, K, D] of tokens [R, N, D]."""
        if self.is_shared:
            return tokens.index_select(1, self.active[0])
        num_rows, _, width = tokens.shape
        taken = tokens.reshape(-1, width).index_select(0, self._flat(1, self.num_tokens))
        return taken.view(num_rows, self.num_active, width)

    def scatter(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows [R, K, D] at their places in zeros [R, N, D]."""
        full = rows.new_zeros(rows.shape[0], self.num_tokens, rows.shape[-1])
        if self.is_shared:
            return full.index_copy_(1, self.active[0], rows)
        full.view(-1, rows.shape[-1]).index_copy_(0, self._flat(1, self.num_tokens), rows.reshape(-1, rows.shape[-1]))
        return full

    def write_heads(self, full: torch.Tensor, rows: torch.Tensor) -> None:
        """Write rows [R, H, K, d] into contiguous ``full`` [R, H, S, d] (S >= N, image tokens first), in place."""
        if self.is_shared:
            full.index_copy_(2, self.active[0], rows)
            return
        num_heads, length, width = full.shape[1:]
        full.view(-1, width).index_copy_(0, self._flat(num_heads, length), rows.reshape(-1, width))

    def _flat(self, num_heads: int, length: int) -> torch.Tensor:
        """Row numbers [R * H * K] of the active tokens in [R * H * length] rows; made once per step."""
        if (num_heads, length) not in self._made:
            num_rows = self.active.shape[0]
            starts = torch.arange(num_rows * num_heads, device=self.active.device) * length
            flat = self.active[:, None, :] + starts.view(num_rows, num_heads, 1)
            self._made[num_heads, length] = flat.reshape(-1)
        return self._made[num_heads, length]


class KVCache:
    """Keys and values of one attention call: N image tokens first, then those of the text (always written fresh)."""

    def __init__(self, key: torch.Tensor, value: torch.Tensor) -> None:
        """Keep the full key and value [R, H, N + L, d] of a dense step. They are not copied if they are contiguous."""
        self.key = key.contiguous()
        self.value = value.contiguous()

    def merge(self, key: torch.Tensor, value: torch.Tensor, rows: RowIndex) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a region step's key and value [R, H, K + L, d] and return the full ones [R, H, N + L, d]."""
        num_active, num_tokens = rows.num_active, rows.num_tokens
        for full, fresh in ((self.key, key), (self.value, value)):
            rows.write_heads(full, fresh[:, :, :num_active])
            full[:, :, num_tokens:] = fresh[:, :, num_active:]
        return self.key, self.value
