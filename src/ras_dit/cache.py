"""Keys and values of all tokens: a region step writes those of its rows in place."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from ras_dit.addresses import lasting
from ras_dit.kv_forecast import KVAdvance
from ras_dit.kv_storage import AS_COMPUTED, KVStorage, Like, is_device
from ras_dit.rows import RowIndex, as_words


class KVCache:
    """Keys and values of one attention call, with the mask and scale that belong to the full sequence.

    Args:
        key, value: of a dense step [R, H, length, d]. They are not copied if they are contiguous and kept as they are.
        mask: attention mask of that step, None without one.
        scale: softmax scale of that step (Lumina's depends on the sequence length).
        storage: how keys and values are kept; None as computed.

    Attributes:
        key_slope, value_slope: change per sigma, where keys and values are forecast; else None.
        num_dropped: rows of the sequence that the region step under way does not compute.

    A step lays out what `merge`, `mask_for` and `refill` will read (`aim`, `aim_whole`): plain tensors and numbers, for
    these may be traced into a compiled block.
    """

    # of the step under way: the rows computed, by image and for `index_copy_` (there, and where they are kept)
    places: torch.Tensor
    index: torch.Tensor
    kept_index: torch.Tensor
    is_flat: bool  # the index is one of rows of all images laid end to end
    # where keys and values are forecast: the fresh rows of the grid, their places, and what `KVAdvance` says of them
    begin: int
    end: int
    moving: torch.Tensor
    change: torch.Tensor
    followed: torch.Tensor
    per_sigma: torch.Tensor
    # of the mask: the queries that are computed, whether those of all images are, and whether text is left out
    queries: torch.Tensor | None
    queries_are_alike: bool
    drops_text: bool

    def __init__(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None = None,
        scale: float | None = None,
        storage: KVStorage | None = None,
    ) -> None:
        storage = storage or AS_COMPUTED  # (PyTorch 2.11 cannot trace a call that has an object for a default)
        self._is_kept_by(storage, key)
        self.key = storage.store(key) if storage.keeps else nothing_like(key)
        self.value = storage.store(value) if storage.keeps else nothing_like(value)
        self.mask = mask
        self.laid_out_mask: torch.Tensor | None = None
        self.scale = scale
        self.num_rows, self.num_heads, self.length = key.shape[:3]
        self.dtype = key.dtype  # as computed
        self.key_slope: torch.Tensor | None = None
        self.value_slope: torch.Tensor | None = None
        self.advance: KVAdvance | None = None
        self.num_dropped = 0

    def _is_kept_by(self, storage: KVStorage, computed: torch.Tensor | Like) -> None:
        self.storage = storage
        self.keeps = storage.keeps
        self.is_converted = not storage.is_as_computed(computed)
        self.operations = None if self.is_converted or not storage.keeps else storage.operations

    @classmethod
    def reserved(cls, likes: tuple[Like, Like] | None, storage: KVStorage, forecasts: bool = False) -> KVCache:
        """An empty cache to be filled by `refill`.

        Args:
            likes: a key and value like those to come; None keeps nothing.
            storage: how they are kept.
            forecasts: with memory for their slopes.
        """
        if likes is None or not storage.keeps:
            nothing = torch.empty(0, 0, 0, 0)
            return cls(nothing, nothing, storage=KVStorage(keeps=False))
        key, value = (storage.reserve(like) for like in likes)
        cache = cls(key, value)
        cache._is_kept_by(storage, likes[0])
        cache.dtype = likes[0].dtype
        if forecasts:
            cache.key_slope, cache.value_slope = (storage.reserve(like) for like in likes)
        return cache

    def fits(self, key: torch.Tensor | Like, value: torch.Tensor | Like) -> bool:
        """Whether `refill` can take these."""
        is_alike = self.dtype == key.dtype and is_device(self.storage.device or key.device, self.key.device)
        return not self.keeps or (is_alike and self.key.shape == key.shape and self.value.shape == value.shape)

    def refill(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scale: float | None,
        forecasts: bool = False,
    ) -> None:
        """Take in another dense step in the memory that is there.

        Args:
            key, value: [R, H, length, d], as `fits` them.
            mask, scale: see above.
            forecasts: learn slopes: from what was there if it was aimed at this step by `aim_whole`, else from zero.
        """
        self.mask, self.scale = mask, scale
        self.num_rows, self.num_heads, self.length = key.shape[:3]
        if not self.keeps:
            return
        if forecasts and (self.key_slope is None or self.value_slope is None):
            self.begin_slopes()
        elif forecasts and self.advance is None:
            self.key_slope.zero_()  # type: ignore[union-attr]
            self.value_slope.zero_()  # type: ignore[union-attr]
        elif forecasts:
            self._keep_slope(self.key_slope, self._followed(self.key, self.key_slope, key))  # type: ignore[arg-type]
            self._keep_slope(self.value_slope, self._followed(self.value, self.value_slope, value))  # type: ignore[arg-type]
        self.key.copy_(self.storage.bounded(key))
        self.value.copy_(self.storage.bounded(value))

    _KEPT = ("key", "value", "key_slope", "value_slope")

    def of_rows(self, which: slice) -> KVCache:
        """The same for some rows of the batch, for one step: views, so that what is written to them is written here."""
        part = copy.copy(self)
        for name in self._KEPT:
            if (tensor := getattr(self, name)) is not None:
                setattr(part, name, view := tensor[which])
                if self.storage.is_static:  # and so is what is seen of it
                    torch._dynamo.mark_static_address(view, guard=False)
        if self.mask is not None and self.mask.ndim == 4 and self.mask.shape[0] == self.num_rows:
            part.mask = self.mask[which]
        return part

    def settle(self) -> None:
        """Move keys and values that a block made to memory that stays where it is."""
        for name in self._KEPT:
            tensor = getattr(self, name)
            if tensor is not None and tensor.numel():
                setattr(self, name, lasting(tensor.shape, tensor.dtype, tensor.device).copy_(tensor))

    def end_run(self) -> None:
        """What comes is of another run: no slope goes on from this one."""
        self.advance = None

    def begin_slopes(self) -> None:
        """Forecast from now on, from slopes of zero."""
        if self.keeps:
            self.key_slope, self.value_slope = torch.zeros_like(self.key), torch.zeros_like(self.value)

    def _followed(self, kept: torch.Tensor, slope: torch.Tensor, fresh: torch.Tensor) -> torch.Tensor:
        """The slope from the values computed last to fresh ones: that of the forecast, and what it missed."""
        assert self.advance is not None
        kept, slope, fresh = (self._as_computed(tensor) for tensor in (kept, slope, fresh))
        missed = fresh - kept.addcmul(slope, self.change)
        return slope.mul_(self.followed).addcmul_(missed, self.per_sigma)

    def _as_computed(self, tensor: torch.Tensor) -> torch.Tensor:
        """Something kept, in the type and at the place of computing: a copy if it is converted for that."""
        return tensor.to(device=self.change.device, dtype=self.dtype) if self.is_converted else tensor

    def _keep_slope(self, slope: torch.Tensor, learned: torch.Tensor) -> None:
        if learned is not slope:
            slope.copy_(self.storage.bounded(learned))

    def aim_whole(self, advance: KVAdvance, rows: RowIndex) -> None:
        """Lay out a dense step: all tokens are computed anew.

        Args:
            advance: from the last step to this one.
            rows: all tokens of the grid, placed in this sequence.
        """
        self.advance = advance
        laid_out = advance.of_sequence(rows, self.length, self.dtype)
        self.change, self.followed, self.per_sigma = (self._of_own(each) for each in laid_out)

    def _of_own(self, laid_out: torch.Tensor) -> torch.Tensor:
        """Of so many rows as are kept: a model that attends image by image shares one set (Mochi)."""
        return self.storage.fixed(laid_out[: self.key.shape[0]])

    def aim(self, rows: RowIndex, advance: KVAdvance | None = None) -> None:
        """Lay out where the rows of a region step go; `merge` and `mask_for` then only read tensors and numbers.

        Args:
            rows: computed rows, placed in this sequence.
            advance: from the last step to this one, where keys and values are forecast.
        """
        self.is_flat = not rows.is_alike
        self.places = rows.positions(self.length)
        self.index = rows.heads_index(self.places, self.num_heads, self.length)
        if self.keeps and self.is_converted:
            self.kept_index = rows.heads_index(self.places, self.num_heads, self.length, self.key.device)
        self.drops_text = rows.hole[0] < rows.hole[1]
        self.num_dropped = rows.num_dropped
        self.queries = self.places if self.mask is not None else None
        self.laid_out_mask = None if self.mask is None else self.storage.fixed(self.mask)
        self.queries_are_alike = rows.is_alike
        self.advance = advance if self.keeps else None
        if self.advance is not None:
            is_uniform = isinstance(rows.offset, int)
            # in the fresh rows those of the grid lie from `begin` to `end`; only they have slopes
            self.begin = rows.num_in_front if isinstance(rows.offset, int) else 0
            self.end = self.begin + rows.num_active if is_uniform else self.length
            self.moving = self.index
            if is_uniform:
                self.moving = rows.heads_index(rows.placed, self.num_heads, self.length)
            self.change = self._of_own(self.advance.of_sequence(rows, self.length, self.dtype)[0])
            taken = self.advance.of_rows(rows, self.num_heads, self.length, self.is_flat, self.dtype)
            self.followed, self.per_sigma = (self.storage.fixed(each) for each in taken)

    def merge(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a region step's rows [R, H, P, d] in place and return the full keys and values [R, H, length, d].

        A cache that keeps nothing gives the rows back as they are.
        """
        if not self.keeps:
            return key, value
        if self.is_converted:
            return self._converted(self.key, self.key_slope, key), self._converted(self.value, self.value_slope, value)
        if self.advance is not None:
            assert self.key_slope is not None
            assert self.value_slope is not None
            self._carry(self.key, self.key_slope, key)
            self._carry(self.value, self.value_slope, value)
        if self.operations is not None and not torch.compiler.is_compiling():  # which joins the copies to what is there
            self.operations.merge_rows(self.key, self.value, key, value, self.places)
            return self.key, self.value
        self._write(self.key, key, self.index)
        self._write(self.value, value, self.index)
        return self.key, self.value

    def _carry(self, kept: torch.Tensor, slope: torch.Tensor, rows: torch.Tensor) -> None:
        """Move what is kept to the sigma of this step, in place, and learn the slopes of the rows that are fresh."""
        assert self.advance is not None
        kept.addcmul_(slope, self.change)
        fresh = rows[:, :, self.begin : self.end]
        if self.is_flat:
            width = kept.shape[-1]
            kept, slope, fresh = kept.view(-1, width), slope.view(-1, width), fresh.reshape(-1, width)
        dim = 0 if self.is_flat else 2
        missed = fresh - kept.index_select(dim, self.moving)
        learned = slope.index_select(dim, self.moving).mul_(self.followed).addcmul_(missed, self.per_sigma)
        slope.index_copy_(dim, self.moving, learned)

    def _converted(self, kept: torch.Tensor, slope: torch.Tensor | None, rows: torch.Tensor) -> torch.Tensor:
        """All keys or values as computed, of what is kept in another type or elsewhere, with these rows in place."""
        full = kept.to(device=rows.device, dtype=rows.dtype, copy=True)
        if self.advance is not None:
            assert slope is not None
            moving = slope.to(device=rows.device, dtype=rows.dtype, copy=True)
            self._carry(full, moving, rows)
            self._write(full, rows, self.index)
            slope.copy_(self.storage.bounded(moving))
            kept.copy_(self.storage.bounded(full))  # all of it has moved
            return full
        self._write(full, rows, self.index)
        stored = self.storage.bounded(rows).to(device=kept.device, dtype=kept.dtype)
        as_bytes = kept.dtype.itemsize == 1  # eight-bit floats cannot be indexed; their bytes can
        self._write(
            kept.view(torch.uint8) if as_bytes else kept,
            stored.view(torch.uint8) if as_bytes else stored,
            self.kept_index,
        )
        return full

    def _write(self, full: torch.Tensor, rows: torch.Tensor, index: torch.Tensor) -> None:
        """All rows in one operation: compiled, a second one would have the whole cache copied."""
        full, rows = as_words(full, rows)
        if self.is_flat:
            width = full.shape[-1]
            full.view(-1, width).index_copy_(0, index, rows.reshape(-1, width))
        else:
            full.index_copy_(2, index, rows)

    def mask_for(self, given: torch.Tensor | None) -> torch.Tensor | None:
        """The mask of a region step: all keys, and the queries that are computed.

        Args:
            given: the mask as the model made it, over full or over computed rows.
        """
        if self.laid_out_mask is None or self.queries is None or (given is None and not self.drops_text):
            return None
        mask = self.laid_out_mask if given is None or given.shape[-1] != self.length else given
        if mask.ndim >= 2 and mask.shape[-2] == self.length:
            mask = mask[..., :1, :] if mask.stride(-2) == 0 else self._taken(mask, -2)  # alike for all queries, or not
        return mask if self.keeps else self._taken(mask, -1)

    def _taken(self, mask: torch.Tensor, dim: int) -> torch.Tensor:
        """Entries of the computed rows along one of a mask's last two dimensions."""
        assert self.queries is not None
        if self.queries_are_alike:
            return mask.index_select(dim, self.queries[0])
        num_rows, count = self.queries.shape
        mask = mask.expand(num_rows, *mask.shape[1:]) if mask.ndim > 2 or dim == -1 else mask.expand(num_rows, -1, -1)
        sizes = [1] * mask.ndim
        sizes[0], sizes[dim] = num_rows, count
        shape = list(mask.shape)
        shape[dim] = count
        return mask.gather(dim, self.queries.view(sizes).expand(shape))


def nothing_like(tensor: torch.Tensor) -> torch.Tensor:
    """No rows [R, H, 0, d] of keys or values, in memory of their own: a view would hold all of theirs."""
    return tensor.new_empty(*tensor.shape[:2], 0, tensor.shape[3])


def as_little_as(mask: torch.Tensor) -> torch.Tensor:
    """A mask [..., keys] without what it repeats: dimensions before the last along which it is expanded have one entry,
    which broadcasts."""
    return mask[tuple(slice(None) if stride else slice(0, 1) for stride in mask.stride()[:-1])]


def rows_alone(caches: Sequence[KVCache], num_rows: int) -> list[int | None]:
    """The row of the batch that each of a module's caches holds, where the module attends row by row; None if it holds
    all.

    Args:
        caches: of the module's attention calls, one after the other.
        num_rows: batch size R.
    """
    return [number % num_rows if cached.num_rows == 1 < num_rows else None for number, cached in enumerate(caches)]


def reserved(
    earlier: list[KVCache], likes: list[tuple[Like, Like] | None], storage: KVStorage, forecasts: bool
) -> list[KVCache]:
    """Memory for what a module keeps: that of an earlier step if it is of the size last measured, else anew."""
    if len(earlier) == len(likes) and all(
        cache.fits(*like) if like else not cache.keeps for cache, like in zip(earlier, likes, strict=True)
    ):
        return earlier
    return [KVCache.reserved(like, storage, forecasts) for like in likes]
