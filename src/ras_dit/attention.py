"""The one place where attention is touched: cached keys and values are merged in as the kernel is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ras_dit.cache import KVCache, RowIndex


class UnsupportedAttentionError(ValueError):
    """The attention of a transformer block goes another way than through scaled_dot_product_attention."""


class LayerCache:
    """The caches of one attention module: one per attention call inside it (an IP-Adapter makes a second one)."""

    def __init__(self) -> None:
        self.calls: list[KVCache] = []


class AttentionMerge(TorchFunctionMode):
    """While entered, every scaled_dot_product_attention either fills a layer's cache or attends over it.

    Entered around one attention module's forward only, on the thread that runs it.

    Args:
        layer: where keys and values are kept.
        rows: the computed rows of a region step; None captures the full keys and values of a dense one.
        place: gives the rows their offset in the module's key sequence, from that sequence's length.
    """

    def __init__(self, layer: LayerCache, rows: RowIndex | None, place: Callable[[RowIndex, int], RowIndex]) -> None:
        super().__init__()
        self.layer = layer
        self.rows = rows
        self.place = place
        self.num_calls = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        return self._attend(*args, **kwargs)

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        position = self.num_calls
        self.num_calls += 1
        if is_causal:
            raise UnsupportedAttentionError("attention: got causal attention over image tokens; RAS cannot merge that.")
        if self.rows is None:
            self.layer.calls[position:] = [KVCache(key, value, attn_mask, scale)]
        else:
            if position >= len(self.layer.calls):
                raise UnsupportedAttentionError(
                    "attention: a module made more attention calls than in the last dense step; RAS needs the same "
                    "adapters through a whole run."
                )
            cached = self.layer.calls[position]
            num_missing = cached.length - key.shape[2]
            if num_missing == self.rows.num_dropped:
                rows = self.place(self.rows, cached.length)
                key, value = cached.merge(key, value, rows)
                attn_mask, scale = cached.mask_for(attn_mask, rows), cached.scale
            elif num_missing:  # none missing: keys of an image prompt, for instance, with no token of the grid
                raise UnsupportedAttentionError(
                    f"attention: {num_missing} keys fewer than in the last dense step, expected "
                    f"{self.rows.num_dropped}; RAS needs text and adapters of the same length through a whole run."
                )
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
