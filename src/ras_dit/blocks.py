"""Hooks on and inside the repeated blocks: they may be traced into a compiled block, so they read what was laid out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ras_dit.attention import LayerSeam, UnsupportedAttentionError
from ras_dit.models import TokenSelect
from ras_dit.models.plan import Stream
from ras_dit.routing import AttentionRoute
from ras_dit.rows import RowIndex


class BlockSeam:
    """Takes the rows of a block's arguments. It may be traced into a compiled block, where it only reads what `aim`
    laid out.

    Args:
        module: the block.
        chosen: names of its arguments -> the dimension that has one entry per row of the sequence.
        stream: that sequence.
    """

    def __init__(self, module: torch.nn.Module, chosen: Mapping[str, TokenSelect], stream: Stream) -> None:
        self.stream = stream
        parameters = list(inspect.signature(type(module).forward).parameters)[1:]
        self.places = [(name, parameters.index(name), select) for name, select in chosen.items()]
        self.clear()

    def clear(self) -> None:
        """Leave the arguments alone."""
        self.index: torch.Tensor | None = None
        self.rows: RowIndex | None = None
        self.is_alike = False
        self.count = 0

    def aim(self, rows: RowIndex, length: int) -> None:
        """Take these rows of a sequence of this length."""
        self.index, self.is_alike, self.count = rows.laid_out(length)
        self.num_tokens, self.num_active = rows.num_tokens, rows.num_active
        self.rows, self.length = rows, length

    def _rows(self) -> RowIndex:
        assert self.rows is not None
        return self.rows

    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.index is None:
            return None
        new_args, new_kwargs = list(args), dict(kwargs)
        for name, place, select in self.places:
            if name in kwargs:
                new_kwargs[name] = self._taken(kwargs[name], select)
            elif place < len(args):
                new_args[place] = self._taken(args[place], select)
        return tuple(new_args), new_kwargs

    def _taken(self, sequence: Any, select: TokenSelect) -> Any:
        if isinstance(sequence, int):  # a number of rows
            return self.num_active if sequence == self.num_tokens else sequence
        if isinstance(sequence, (list, tuple)):
            return type(sequence)(self._taken(part, select) for part in sequence)
        if isinstance(sequence, dict):
            return {key: self._taken(part, select) for key, part in sequence.items()}
        if not isinstance(sequence, torch.Tensor) or sequence.ndim <= select.dim:
            return sequence
        if select.is_common and not torch.compiler.is_compiling():
            return self._rows().once(sequence, select.dim, self._rows_of)
        return self._rows_of(sequence, select.dim)

    def _rows_of(self, sequence: torch.Tensor, dim: int) -> torch.Tensor:
        assert self.index is not None
        dim = dim % sequence.ndim
        length = sequence.shape[dim]
        if length != self.length:  # a part of the joint sequence that holds the grid, or none of it
            is_part = self.stream == "joint" and length >= self.num_tokens
            return self._rows().gather(sequence, dim) if is_part else sequence
        if sequence.device != self.index.device:
            sequence = self._rows().on_device_of_ids(sequence)
        if self.is_alike:
            return sequence.index_select(dim, self.index)
        if dim != 1 or sequence.shape[0] * self.count != self.index.shape[0]:
            return self._rows().gather(sequence, dim)
        flat = sequence.reshape(sequence.shape[0] * sequence.shape[1], *sequence.shape[2:])
        return flat.index_select(0, self.index).view(sequence.shape[0], self.count, *sequence.shape[2:])


def drop_text(arguments: dict[str, Any], text_rows: Mapping[str, int | None], count: int) -> None:
    """Leave the first so many text rows of these arguments (see `TokenPlan.text_rows`)."""
    for name, dim in text_rows.items():
        if dim is None:
            arguments.pop(name, None)
        elif isinstance(arguments.get(name), torch.Tensor):
            arguments[name] = arguments[name].narrow(dim, 0, count)
        elif isinstance(arguments.get(name), (list, tuple)):
            arguments[name] = [part.narrow(dim, 0, count) for part in arguments[name]]


class TextSeam:
    """Drops the text rows of a block's arguments in region steps that reuse them; it may be traced as well.

    Args:
        module: the block.
        text_rows, min_text: see `TokenPlan`.
    """

    def __init__(self, module: torch.nn.Module, text_rows: Mapping[str, int | None], min_text: int) -> None:
        self.parameters = list(inspect.signature(type(module).forward).parameters)[1:]
        self.text_rows, self.min_text = text_rows, min_text
        self.is_dropping = False

    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.is_dropping:
            return None
        arguments = {**dict(zip(self.parameters, args, strict=False)), **kwargs}
        drop_text(arguments, self.text_rows, self.min_text)
        return (), arguments


def attention_seam(
    layer: LayerSeam, name: str, module: torch.nn.Module, original: Callable[..., Any]
) -> Callable[..., Any]:
    """A forward of an attention module whose attention calls go to a seam, unless that is idle."""
    route = AttentionRoute(layer, module)

    def forward(*args: Any, **kwargs: Any) -> Any:
        if layer.kind == "idle":
            return original(*args, **kwargs)
        result = route(original, args, kwargs)
        if layer.position == 0 and not kwargs.get("all_perturbed", False):  # LTX-2's guidance that skips attention
            processor = type(getattr(module, "processor", module)).__name__
            raise UnsupportedAttentionError(
                f"attention: {processor} in {name} does not use scaled_dot_product_attention; RAS cannot merge cached "
                "keys into it. Use the default processor (pipe.transformer.set_attn_processor(...)) and the native "
                'backend (pipe.transformer.set_attention_backend("native")).'
            )
        return result

    return forward
