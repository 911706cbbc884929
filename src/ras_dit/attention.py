"""The one place where attention is touched: cached keys and values are merged in as the kernel is called.

Everything here may be traced into a compiled block, so what a call needs is laid out in plain attributes before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ras_dit.cache import KVCache, as_little_as
from ras_dit.kv_storage import AS_COMPUTED, KVStorage, Like

WITHOUT = "Take a preset without region steps ('quality', 'balanced' or 'fast'), or ras_dit.disable the pipeline."
REMEDY = "Set adapters, prompts and images before the call and leave them alone until it returns. " + WITHOUT


class UnsupportedAttentionError(ValueError):
    """Raised by the pipeline's call: attention goes another way than through scaled_dot_product_attention, is causal
    over image tokens, or its calls or lengths change inside a run."""


class LayerSeam:
    """What one attention module does in the transformer call under way.

    Attributes:
        kind: ``idle`` leaves the module alone, ``measure`` notes what keys and values look like, ``capture`` keeps
            those of a dense step, ``region`` merges those of a region step into them.
        calls: the caches of the branch under way: one per attention call inside the module (an IP-Adapter makes a
            second one). A capture fills it.
        storage: how a capture keeps keys and values.
        earlier: the caches that a capture follows, or refills.
        forecasts: keys and values are forecast.
        likes: what keys and values of every call look like, as last measured; None for calls that keep none.
        position: attention calls made so far.

    Args:
        mask_query: see `TokenPlan`.
        heads_per_key: how often the module repeats every head of keys and values: one of each is kept.
        hides_nothing: see `TokenPlan`.
    """

    def __init__(self, mask_query: int | None = None, heads_per_key: int = 1, hides_nothing: bool = False) -> None:
        self.mask_query = mask_query
        self.heads_per_key = heads_per_key
        self.hides_nothing = hides_nothing
        self.likes: list[tuple[Like, Like] | None] = []
        self.clear()

    def clear(self) -> None:
        """Leave the module alone and keep nothing."""
        self.aim("idle", [])

    def aim(
        self,
        kind: Literal["idle", "measure", "capture", "region"],
        calls: list[KVCache],
        storage: KVStorage = AS_COMPUTED,
        earlier: list[KVCache] | None = None,
        forecasts: bool = False,
    ) -> None:
        """Say what the next call does."""
        self.kind = kind
        self.earlier = earlier or []
        self.forecasts = forecasts
        if kind == "measure":
            self.likes = []
        self.calls = calls
        self.storage = storage
        self.position = 0

    def settle(self, masks: dict[object, torch.Tensor]) -> None:
        """A capture is over: nothing that a block made is kept, for a CUDA graph will overwrite it.

        Args:
            masks: copies of masks so far, by where they lay: layers share them. More are added.
        """
        for cached in self.calls:
            if all(cached is not known for known in self.earlier):  # it was not filled in place
                cached.settle()
            if cached.mask is not None:
                mask = as_little_as(cached.mask)
                name = (mask.data_ptr(), mask.shape, mask.stride(), mask.dtype)
                if name not in masks:
                    masks[name] = mask.clone()
                cached.mask = masks[name]

    def attend(
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
        """Scaled dot-product attention over fresh and cached keys; arguments as in torch."""
        position = self.position
        self.position = position + 1
        if _skips_scores() and query.shape[2] == value.shape[2]:  # (as there) every row is its own answer: none is kept
            if self.kind == "capture":
                self.calls.append(KVCache(key, value, attn_mask, scale, KVStorage(keeps=False)))
            return functional.scaled_dot_product_attention(query, key, value)
        if self.kind == "measure":
            own_key, own_value = self._own_heads(query, key, value)
            self.likes.append(None if is_causal else (Like.of(own_key), Like.of(own_value)))
        elif self.kind == "capture":
            own_key, own_value = self._own_heads(query, key, value)
            self.calls.append(self._captured(position, own_key, own_value, attn_mask, scale, is_causal))
        else:
            if position >= len(self.calls):
                raise UnsupportedAttentionError(
                    "attention: a module made more attention calls than in the last dense step; RAS needs the same "
                    f"adapters through a whole run. {REMEDY}"
                )
            cached = self.calls[position]
            num_missing = cached.length - key.shape[2]
            if num_missing and is_causal:
                raise UnsupportedAttentionError(
                    f"attention: got causal attention over image tokens; RAS cannot merge that. {WITHOUT}"
                )
            if num_missing and num_missing == cached.num_dropped:
                key, value = cached.merge(*self._own_heads(query, key, value))
                attn_mask = None if self.hides_nothing and not query.is_cpu else cached.mask_for(attn_mask)
                scale = cached.scale if cached.keeps else scale
            elif num_missing:  # none missing: keys of an image prompt, for instance, with no token of the grid
                raise UnsupportedAttentionError(
                    f"attention: {num_missing} keys fewer than in the last dense step, expected {cached.num_dropped}; "
                    f"RAS needs text and adapters of the same length through a whole run. {REMEDY}"
                )
        if self.heads_per_key > 1 and key.shape[1] != query.shape[1]:
            return grouped_attention(query, key, value, attn_mask, dropout_p, scale)
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )

    def _own_heads(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values without what the module repeated for the queries that share them."""
        if self.heads_per_key == 1 or key.shape[1] != query.shape[1]:
            return key, value
        return key[:, :: self.heads_per_key], value[:, :: self.heads_per_key]

    def _captured(
        self,
        position: int,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scale: float | None,
        is_causal: bool,
    ) -> KVCache:
        """What is kept of an attention call."""
        earlier = self.earlier[position] if position < len(self.earlier) else None
        keeps = self.storage.keeps and not is_causal
        is_refilled = self.storage.is_static or self.forecasts  # or they would stand side by side
        if is_refilled and earlier is not None and earlier.keeps == keeps and earlier.fits(key, value):
            earlier.refill(key, value, self._kept(mask), scale, self.forecasts)
            return earlier
        storage = KVStorage(keeps=False) if is_causal else self.storage  # text only, see above
        cached = KVCache(key, value, self._kept(mask), scale, storage)
        if self.forecasts and not is_causal:
            cached.begin_slopes()
        return cached

    def _kept(self, mask: torch.Tensor | None) -> torch.Tensor | None:
        """What is kept of a mask [..., queries, keys]."""
        if mask is None or self.mask_query is None:
            return mask
        return mask[..., self.mask_query, :].unsqueeze(-2).clone()


def grouped_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
) -> torch.Tensor:
    """Scaled dot-product attention where neighbouring heads of queries share one head of keys.

    The queries that share one are laid end to end, as if they were more tokens: any kernel takes that, reads every key
    once, and needs no repetition of it. (PyTorch's ``enable_gqa`` repeats keys where its kernel does not know groups.)

    Args:
        query: [R, H, P, d].
        key: [R, H / n, L, d].
        value: likewise.
        mask: broadcasts to [R, H, P, L], as in torch.
        dropout_p: as in torch.
        scale: as in torch.

    Returns:
        [R, H, P, d].
    """
    num_rows, num_heads, count, width = query.shape
    repeats = num_heads // key.shape[1]
    laid_out = query.reshape(num_rows, key.shape[1], repeats * count, width)
    mask = _end_to_end(mask, repeats, count)
    output = functional.scaled_dot_product_attention(laid_out, key, value, mask, dropout_p, scale=scale)
    return output.reshape(num_rows, num_heads, count, value.shape[-1])


def _end_to_end(mask: torch.Tensor | None, repeats: int, count: int) -> torch.Tensor | None:
    """A mask for the queries of so many heads each end to end."""
    if mask is None:
        return None
    if mask.shape[-2] > 1 and not mask.stride(-2):  # alike for all queries
        mask = mask[..., :1, :]
    num_heads = mask.shape[-3] if mask.ndim > 2 else 1
    if num_heads > 1 and mask.stride(-3):
        whole = mask.expand(*mask.shape[:-2], count, mask.shape[-1])
        return whole.reshape(*mask.shape[:-3], num_heads // repeats, repeats * count, mask.shape[-1])
    mask = mask[..., :1, :, :] if num_heads > 1 else mask  # alike for all heads
    return mask if mask.shape[-2] == 1 else mask.repeat(*[1] * (mask.ndim - 2), repeats, 1)


def _skips_scores() -> bool:
    """Whether perturbed-attention guidance (diffusers' layer-skip hook) answers attention calls with the values."""
    if torch.compiler.is_compiling():
        return False
    outer = torch.overrides._get_current_function_mode()
    return type(outer).__name__ == "AttentionScoreSkipFunctionMode"


class AttentionMerge(TorchFunctionMode):
    """While entered, every scaled_dot_product_attention goes to a layer's seam.

    Entered around one attention module's forward only, on the thread that runs it.
    """

    def __init__(self, layer: LayerSeam) -> None:
        super().__init__()
        self.layer = layer

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is _ATTENTION:
            return self.layer.attend(*args, **kwargs)
        if func is _UNFLATTEN:  # the method cannot be traced from here, the function can
            return torch.unflatten(*args, **kwargs)
        if func is _RESHAPE and not args[0].numel() and -1 in args[1:]:
            return args[0].reshape(size_of_none(args[0].shape, args[1:]))
        return func(*args, **kwargs)


# every operation of an attention module is compared with these
_ATTENTION, _UNFLATTEN, _RESHAPE = functional.scaled_dot_product_attention, torch.Tensor.unflatten, torch.Tensor.reshape


def size_of_none(shape: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """The size that a reshape of no rows at all means by -1: what it would be of any other number of them. (Text that
    region steps do without; PyTorch cannot tell -1 of nothing.)

    Args:
        shape: of a tensor without elements.
        wanted: the size asked for, with one -1 and as many zeros as the shape has.
    """
    rest = 1
    for size in shape:
        rest *= size if size > 0 else 1
    for size in wanted:
        rest //= size if size > 0 else 1
    return [rest if size == -1 else size for size in wanted]  # (in steps that can be traced into a compiled block)
