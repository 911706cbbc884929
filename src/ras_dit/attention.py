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
        rows: the active tokens of a region step; None captures the full keys and values of a dense one.
        num_tokens: image tokens N of a full sequence.
    """

    def __init__(self, layer: LayerCache, rows: RowIndex | None, num_tokens: int) -> None:
        super().__init__()
        self.layer = layer
        self.rows = rows
        self.num_tokens = num_tokens
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
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        if attn_mask is not None:
            raise UnsupportedAttentionError(
                "attention: got a mask over the image tokens; RAS cannot yet merge cached keys under one. Use the "
                "pipeline's default attention processors, or disable RAS."
            )
        position = self.num_calls
        self.num_calls += 1
        if self.rows is None:
            self.layer.calls[position:] = [KVCache(key, value)]
        else:
            if position >= len(self.layer.calls):
                raise UnsupportedAttentionError(
                    "attention: a module made more attention calls than in the last dense step; RAS needs the same "
                    "adapters through a whole run."
                )
            key, value = self.layer.calls[position].merge(key, value, self.rows)
        return functional.scaled_dot_product_attention(query, key, value, None, *args, **kwargs)
