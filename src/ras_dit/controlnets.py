"""A pipeline's ControlNet, left out where the transformer is: a skipped step would do nothing with its output."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ras_dit.pipeline import is_on
from ras_dit.seams import NoCopies, PatchedMethod

if TYPE_CHECKING:
    from ras_dit.state import Generation

MOST = 4
"""Calls of an evaluation whose results are held (Cosmos 2.5 makes two)."""


@dataclass
class _Held:
    """The last computed call of its place in an evaluation.

    Attributes:
        given: its tensors. Every run hands over some of them in each of its calls: the picture, the text.
        result: what it returned.
    """

    given: list[torch.Tensor]
    result: Any

    def is_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call with these arguments is of the same run."""
        known = {id(tensor) for tensor in self.given}
        return any(id(tensor) in known for tensor in _tensors((args, kwargs)))


@dataclass
class _LeftOut:
    """A call that was answered with what is held."""

    held: _Held
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class IdleControlNet:
    """A ControlNet that is not called in skipped steps.

    The pipeline calls it in front of the transformer, and gets what it returned last. Should the transformer's call
    turn out to be computed after all, the ControlNet is called then, and its output put in the place of the old one
    among the transformer's arguments. One that somebody watches with hooks is called in every step.

    Args:
        followed: gives the run under way, None outside of one.
        note: called with what went otherwise than it should.
    """

    def __init__(self, followed: Callable[[], Generation | None], note: Callable[[str], None]) -> None:
        self._followed, self._note = followed, note
        self._controlnet: torch.nn.Module | None = None
        self._patches: list[PatchedMethod | NoCopies] = []
        self._is_computing = False
        self._position = 0
        self.switched_on: tuple[bool, ...] = ()  # in the evaluation under way; () before its call, or without one
        self._held: list[_Held] = []  # in the order of the calls of an evaluation
        self._left_out: list[_LeftOut] = []
        self._fresh: dict[int, torch.Tensor] = {}  # by the id of what stood for it in this evaluation

    def attach(self, controlnet: torch.nn.Module | None) -> None:
        """Be on this one from now on; None is on none."""
        if controlnet is self._controlnet:
            for patch in self._patches:
                patch.ensure()
            return
        self.release()
        self._controlnet = controlnet
        if controlnet is not None:
            reason = "copy: RAS is on the pipeline of this ControlNet; ras_dit.disable(pipe) first."
            self._patches = [PatchedMethod(controlnet, "forward", self._sparing), NoCopies(controlnet, reason)]

    def _sparing(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling() or self._is_computing:
                return original(*args, **kwargs)
            self.switched_on = is_on(kwargs.get("conditioning_scale"))
            run, position = self._followed(), self._position
            is_other = position < len(self._held) and not self._held[position].is_of(args, kwargs)
            if run is None or position >= MOST or is_other or _is_watched(self._controlnet):
                return original(*args, **kwargs)
            self._position += 1
            if position < len(self._held) and run.will_skip:
                self._left_out.append(_LeftOut(self._held[position], args, kwargs))
                return _replaced(self._held[position].result, {})
            result = original(*args, **kwargs)
            # a copy of lists and the like: HunyuanDiT empties the one it is given
            self._held[position:] = [_Held(list(_tensors((args, kwargs))), _replaced(result, {}))]
            return result

        return forward

    def with_computed_outputs(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Arguments of a transformer call that is computed, with the output of the calls that were left out, which are
        made now; None if none was."""
        for call in self._left_out:
            assert self._controlnet is not None
            self._is_computing = True
            try:  # by its forward as it is: offload hooks may lie over ours
                result = self._controlnet.forward(*call.args, **call.kwargs)
            finally:
                self._is_computing = False
            pairs = zip(_tensors(call.held.result), _tensors(result), strict=True)
            self._fresh.update({id(before): after for before, after in pairs})
        if self._left_out and all(id(tensor) not in self._fresh for tensor in _tensors((args, kwargs))):
            self._note(
                "The ControlNet's output of the step before went into a step that was not skipped: the pipeline hands "
                "it on changed."
            )
        self._left_out = []
        return (_replaced(args, self._fresh), _replaced(kwargs, self._fresh)) if self._fresh else None

    def end_evaluation(self) -> None:
        """An evaluation is over, or the run. Where no step to come is skipped, nothing is held."""
        run = self._followed()
        if run is None or all(step.kind != "skip" for step in run.plan.steps[run.index :]):
            self._held = []
        self._position, self._left_out, self._fresh, self.switched_on = 0, [], {}, ()

    def release(self) -> None:
        """The ControlNet is as it was."""
        for patch in self._patches:
            patch.release()
        self._patches, self._controlnet, self._held = [], None, []
        self._position, self._left_out, self._fresh = 0, [], {}


def _is_watched(controlnet: torch.nn.Module | None) -> bool:
    """Whether somebody's hooks see the calls of a module, or change what it returns."""
    return controlnet is not None and bool(controlnet._forward_hooks or controlnet._forward_pre_hooks)


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
