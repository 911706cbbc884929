"""Which rows of a sequence a step computes, how they are taken out of it and put back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch


def as_made(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor where it was made."""
    return tensor


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on a device. The CPU would wait for a GPU if it sent it from memory that is not pinned, or has gaps
    (compiled code pins nothing)."""
    if device.type != "cuda" or tensor.device.type != "cpu" or torch.compiler.is_compiling():
        return tensor.to(device)
    return tensor.contiguous().pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True)
class RowIndex:
    """Which rows of a sequence a region step computes: the active tokens of the grid, and the rows beside the grid.

    The N tokens of the grid lie side by side, from ``offset`` on; before and after them stand text, reference and
    padding rows, which are computed but for ``beside`` and ``hole``. The methods read how many there are from the
    length of the sequence.

    Attributes:
        active: LongTensor [R, K], ascending token ids for every row of the transformer's batch.
        num_tokens: tokens N of the grid.
        is_shared: all rows of the batch have the same ids.
        offset: where the grid begins in the sequence: one number, or LongTensor [R] where that differs by row.
        beside: reference tokens right before and right behind the grid that are not computed (`RASConfig`'s
            ``reference_reuse``).
        hole: where text rows begin and end that are not computed either (``text_reuse``); equal numbers for none.
        fixed: puts what is made of the ids where compiled blocks may read it (`ras_dit.addresses`); by default it stays
            where it was made.
    """

    active: torch.Tensor
    num_tokens: int
    is_shared: bool
    offset: int | torch.Tensor = 0
    beside: tuple[int, int] = (0, 0)
    hole: tuple[int, int] = (0, 0)
    fixed: Callable[[torch.Tensor], torch.Tensor] = field(default=as_made, compare=False, repr=False)
    _made: dict[object, torch.Tensor] = field(default_factory=dict, compare=False, repr=False)
    _placed: dict[object, RowIndex] = field(default_factory=dict, compare=False, repr=False)
    _sent: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict, compare=False, repr=False)
    _taken: dict[object, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def num_active(self) -> int:
        return self.active.shape[1]

    @property
    def num_dropped(self) -> int:
        """Rows that are not computed."""
        return self.num_tokens - self.num_active + sum(self.beside) + self.hole[1] - self.hole[0]

    @property
    def num_in_front(self) -> int:
        """Computed rows in front of the grid, where it begins at one place in all rows of the batch."""
        assert isinstance(self.offset, int)
        first, last = (min(place, self.offset) for place in self.hole)
        return self.offset - self.beside[0] - (last - first)

    @functools.cached_property
    def twice(self) -> RowIndex:
        """The same tokens of two grids side by side."""
        active = torch.cat([self.active, self.active + self.num_tokens], dim=1)
        return RowIndex(self.fixed(active), 2 * self.num_tokens, self.is_shared, fixed=self.fixed)

    def of_image(self, image: int, num_images: int) -> RowIndex:
        """Those of one image: every ``num_images``-th row of the batch, which have the same tokens."""
        key = ("image", image, num_images)
        if key not in self._placed:
            active = self.fixed(self.active[image::num_images])
            self._placed[key] = replace(self, active=active, is_shared=True, _made={}, _placed={}, _sent={}, _taken={})
        return self._placed[key]

    def at(self, offset: int | torch.Tensor, hole: tuple[int, int] = (0, 0)) -> RowIndex:
        """The same tokens in a sequence whose grid begins elsewhere, and whose text is there, or not computed."""
        if isinstance(offset, torch.Tensor):
            return replace(self, offset=offset, hole=hole, _made={}, _placed={}, _taken={})
        key = (offset, hole)
        if isinstance(self.offset, int) and key == (self.offset, self.hole):
            return self
        if key not in self._placed:
            self._placed[key] = replace(self, offset=offset, hole=hole, _made={}, _placed={}, _taken={})
        return self._placed[key]

    def positions(self, length: int) -> torch.Tensor:
        """Rows that are computed of a sequence of this length, LongTensor [R, length - num_dropped], ascending."""
        if length == self.num_tokens and isinstance(self.offset, int):
            return self.active
        if length not in self._made:
            self._made[length] = self._fixed(self._positions(length))
        return self._made[length]

    def _fixed(self, made: torch.Tensor) -> torch.Tensor:
        return made if torch.compiler.is_compiling() else self.fixed(made)  # a block's own is no one else's

    def _positions(self, length: int) -> torch.Tensor:
        num_rows, device = self.active.shape[0], self.active.device
        size = self.num_tokens + self.beside[1]
        if isinstance(self.offset, int):
            before = self._others(0, self.offset - self.beside[0]).expand(num_rows, -1)
            after = self._others(self.offset + size, length).expand(num_rows, -1)
            return torch.cat([before, self.active + self.offset, after], dim=1)
        at = torch.arange(length, device=device).expand(num_rows, -1)
        is_among = (at >= self.offset[:, None] - self.beside[0]) & (at < self.offset[:, None] + size)
        is_among = is_among | ((at >= self.hole[0]) & (at < self.hole[1]))
        is_kept = (~is_among).scatter(1, self.active + self.offset[:, None], True)
        order = (~is_kept).to(torch.uint8).argsort(dim=1, stable=True)  # kept rows first, in their order
        return order[:, : length - self.num_dropped]

    def _others(self, begin: int, end: int) -> torch.Tensor:
        """Rows from one place to another, but for the hole."""
        first, last = (min(max(place, begin), end) for place in self.hole)
        device = self.active.device
        return torch.cat([torch.arange(begin, first, device=device), torch.arange(last, end, device=device)])

    def laid_out(self, length: int) -> tuple[torch.Tensor, bool, int]:
        """Where the computed rows of a sequence [R, length, ...] lie: along ``length`` if one list serves all rows of
        the batch (then True), else in the flat [R * length, ...]; and how many they are."""
        positions = self.positions(length)
        index = positions[0] if self.is_alike else self._flat(positions, 1, length)
        return index, self.is_alike, positions.shape[1]

    def gather(self, sequence: torch.Tensor, dim: int = 1) -> torch.Tensor:
        """The computed rows of a sequence along ``dim``.

        Rows that differ by image are taken from sequences that have a batch dimension, of size R or 1.
        """
        sequence, positions = self.on_device_of_ids(sequence), self.positions(sequence.shape[dim])
        if self.is_alike:
            return sequence.index_select(dim, positions[0])
        assert dim > 0, "rows that differ by image cannot be taken from a table without a batch dimension"
        if dim > 1:
            return self.gather(sequence.transpose(1, dim)).transpose(1, dim)
        num_rows, count = positions.shape
        if sequence.shape[0] == 1 and num_rows > 1:
            return sequence[0].index_select(0, positions.reshape(-1)).view(num_rows, count, *sequence.shape[2:])
        flat = sequence.reshape(num_rows * sequence.shape[1], *sequence.shape[2:])
        taken = flat.index_select(0, self._flat(positions, 1, sequence.shape[1]))
        return taken.view(num_rows, count, *sequence.shape[2:])

    def on_device_of_ids(self, sequence: torch.Tensor) -> torch.Tensor:
        """A sequence where the ids are. Some models make their rotary tables on the CPU, and hand one to all layers: it
        is sent once per step (in compiled blocks: once per block)."""
        device = self.active.device
        if sequence.device == device:
            return sequence
        if torch.compiler.is_compiling():
            return sent(sequence, device)
        if id(sequence) not in self._sent:
            self._sent[id(sequence)] = sequence, sent(sequence, device)  # held, so that no other tensor gets its id
        return self._sent[id(sequence)][1]

    def once(self, sequence: torch.Tensor, dim: int, take: Callable[[torch.Tensor, int], torch.Tensor]) -> torch.Tensor:
        """What ``take`` makes of a tensor that all modules are given alike: once per step."""
        key = (id(sequence), dim)
        if key not in self._taken:
            self._taken[key] = sequence, take(sequence, dim)  # held, so that no other tensor gets its id
        return self._taken[key][1]

    def scatter(self, rows: torch.Tensor) -> torch.Tensor:
        """Computed rows [R, P, D] at their places in zeros [R, P + num_dropped, D]."""
        length = rows.shape[1] + self.num_dropped
        full = rows.new_zeros(rows.shape[0], length, rows.shape[-1])
        positions = self.positions(length)
        if self.is_alike:
            return full.index_copy_(1, positions[0], rows)
        flat = self._flat(positions, 1, length)
        full.view(-1, rows.shape[-1]).index_copy_(0, flat, rows.reshape(-1, rows.shape[-1]))
        return full

    @property
    def placed(self) -> torch.Tensor:
        """The active tokens' places in the sequence [R, K]; made once per step."""
        if "placed" not in self._made:
            offset = self.offset[:, None] if isinstance(self.offset, torch.Tensor) else self.offset
            self._made["placed"] = self._fixed(self.active + offset)
        return self._made["placed"]

    def heads_index(
        self, positions: torch.Tensor, num_heads: int, length: int, device: torch.device | None = None
    ) -> torch.Tensor:
        """Where positions [R, P] of a sequence lie in [R, H, length, d]: along ``length`` if all rows of the batch are
        alike, else in the flat [R * H * length, d]; on another device if one is given (moved there once per step)."""
        index = positions[0] if self.is_alike else self._flat(positions, num_heads, length)
        if device is None or device == index.device:
            return index
        key = (positions.shape[1], num_heads, length, device)
        if key not in self._made:
            self._made[key] = index.to(device)
        return self._made[key]

    @property
    def is_alike(self) -> bool:
        """Whether one list of positions serves all rows of the batch."""
        return self.is_shared and isinstance(self.offset, int)

    def _flat(self, positions: torch.Tensor, num_heads: int, length: int) -> torch.Tensor:
        """Row numbers [R * H * P] of positions [R, P] in [R * H * length] rows; made once per step."""
        key = (positions.shape[1], num_heads, length)
        if key not in self._made:
            num_rows = positions.shape[0]
            starts = torch.arange(num_rows * num_heads, device=positions.device) * length
            self._made[key] = self._fixed((positions[:, None, :] + starts.view(num_rows, num_heads, 1)).reshape(-1))
        return self._made[key]


_IN_WORDS = ("cpu", "cuda")


def as_words(full: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and what they are copied into, both seen as 64-bit words, where the layout of both allows it: fewer, larger
    ones are copied (on a GPU, one per thread; that this is faster there, too, has not been measured).

    Args:
        full: [..., d].
        rows: [..., d], of the same type, at the same place.
    """
    per_word = 8 // rows.element_size()
    if per_word == 1 or torch.compiler.is_compiling() or rows.device.type not in _IN_WORDS:
        return full, rows
    for tensor in (full, rows):
        *outer, last = tensor.stride()
        if last != 1 or tensor.shape[-1] % per_word or tensor.storage_offset() % per_word:
            return full, rows
        for stride in outer:
            if stride % per_word:
                return full, rows
    return full.view(torch.int64), rows.view(torch.int64)
