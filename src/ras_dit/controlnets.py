"""A pipeline's ControlNet, left out where the transformer is: a skipped step would do nothing with its output."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from ras_dit.seams import NoCopies, PatchedMethod

if TYPE_CHECKING:
    from ras_dit.state import Generation

MOST = 4
"""Calls of an evaluation whose results are held (Cosmos 2.5 makes two)."""


class IdleControlNet:
    """A ControlNet that is not called in skipped steps.

    The pipeline calls it in front of the transformer, and gets what it returned last. Should the transformer's call
    turn out to be computed after all, the ControlNet is called then, and its output put in the place of the old one
    among the transformer's arguments.

    Args:
        controlnet: of the pipeline; None without one, and nothing is done.
        followed: gives the run under way, None outside of one.
    """

    def __init__(self, controlnet: torch.nn.Module | None, followed: Callable[[], Generation | None]) -> None:
        self._controlnet, self._followed = controlnet, followed
        self._is_paying = False
        self._position = 0
        self._results: list[Any] = []  # of the last evaluation that called it, in the order of its calls
        self._owed: list[tuple[int, tuple[Any, ...], dict[str, Any]]] = []
        self._fresh: dict[int, torch.Tensor] = {}  # by the id of what stood for it in this evaluation
        self._patches: list[PatchedMethod | NoCopies] = []
        if controlnet is not None:
            reason = "copy.deepcopy: RAS is on the pipeline of this ControlNet; ras_dit.disable(pipe) first."
            self._patches = [PatchedMethod(controlnet, "forward", self._sparing), NoCopies(controlnet, reason)]

    def _sparing(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling() or self._is_paying:
                return original(*args, **kwargs)
            run, position = self._followed(), self._position
            if run is None or position >= MOST:
                return original(*args, **kwargs)
            self._position += 1
            if position < len(self._results) and run.will_skip:
                self._owed.append((position, args, kwargs))
                return _replaced(self._results[position], {})
            result = original(*args, **kwargs)
            self._results[position:] = [_replaced(result, {})]  # HunyuanDiT empties the list it is given
            return result

        return forward

    def paid(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Arguments of a transformer call that is computed, with the output of the calls that were left out; None if
        none was."""
        for position, given, named in self._owed:
            assert self._controlnet is not None
            self._is_paying = True
            try:  # by its forward as it is: offload hooks may lie over ours
                result = self._controlnet.forward(*given, **named)
            finally:
                self._is_paying = False
            pairs = zip(_tensors(self._results[position]), _tensors(result), strict=True)
            self._fresh.update({id(before): after for before, after in pairs})
        self._owed.clear()
        return (_replaced(args, self._fresh), _replaced(kwargs, self._fresh)) if self._fresh else None

    def end_evaluation(self) -> None:
        """An evaluation is over, or the run. Where no step to come is skipped, nothing is held."""
        self._position = 0
        self._owed.clear()
        self._fresh.clear()
        run = self._followed()
        if run is None or all(step.kind != "skip" for step in run.plan.steps[run.index :]):
            self._results.clear()

    def ensure(self) -> None:
        """Put back what somebody else took out."""
        for patch in self._patches:
            patch.ensure()

    def release(self) -> None:
        """The ControlNet is as it was."""
        for patch in self._patches:
            patch.release()
        self._results.clear()
        self._owed.clear()
        self._fresh.clear()
        self._patches, self._controlnet = [], None


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _replaced(value: Any, fresh: dict[int, torch.Tensor]) -> Any:
    """The same in lists, tuples and dictionaries of its own, with other tensors in the place of some."""
    if isinstance(value, torch.Tensor):
        return fresh.get(id(value), value)
    if type(value) in (list, tuple):
        return type(value)(_replaced(part, fresh) for part in value)
    if type(value) is dict:
        return {key: _replaced(part, fresh) for key, part in value.items()}
    return value
