"""A pipeline's ControlNet, left out where the transformer is: a skipped step would do nothing with its output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from ras_dit.plan import StepPlan
from ras_dit.seams import PatchedMethod


class IdleControlNet:
    """A ControlNet that is not called in skipped steps.

    The pipeline calls it in front of the transformer, and gets what it returned last. Should the transformer's call
    turn out to be computed after all, the ControlNet is called then, and its output put in the place of the old one
    among the transformer's arguments.

    Args:
        controlnet: of the pipeline; None without one, and nothing is done.
        will_skip: whether the evaluation under way is planned, and able, to leave the transformer out.
    """

    def __init__(self, controlnet: torch.nn.Module | None, will_skip: Callable[[], bool]) -> None:
        self._will_skip = will_skip
        self._original: Callable[..., Any] = lambda: None  # the ControlNet's own forward
        self._position = 0
        self._results: list[Any] = []  # of the last evaluation that called it, in the order of its calls
        self._owed: list[tuple[int, tuple[Any, ...], dict[str, Any]]] = []
        self._patch = None if controlnet is None else PatchedMethod(controlnet, "forward", self._sparing)

    def _sparing(self, original: Callable[..., Any]) -> Callable[..., Any]:
        self._original = original

        def forward(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                return original(*args, **kwargs)
            position = self._position
            self._position += 1
            if position < len(self._results) and self._will_skip():
                self._owed.append((position, args, kwargs))
                return self._results[position]
            result = original(*args, **kwargs)
            self._results[position:] = [result]
            return result

        return forward

    def paid(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Arguments of a transformer call that is computed, with the output of the calls that were left out; None if
        none was."""
        if not self._owed:
            return None
        fresh: dict[int, torch.Tensor] = {}
        for position, given, named in self._owed:
            old, self._results[position] = self._results[position], self._original(*given, **named)
            pairs = zip(_tensors(old), _tensors(self._results[position]), strict=True)
            fresh.update({id(before): after for before, after in pairs})
        self._owed.clear()
        return _replaced(args, fresh), _replaced(kwargs, fresh)

    def end_evaluation(self, steps: Iterable[StepPlan] = ()) -> None:
        """An evaluation is over.

        Args:
            steps: that are to come. Where none is skipped, nothing is held.
        """
        self._position = 0
        self._owed.clear()
        if all(step.kind != "skip" for step in steps):
            self._results.clear()

    def ensure(self) -> None:
        """Put back what somebody else took out."""
        if self._patch is not None:
            self._patch.ensure()

    def release(self) -> None:
        """The ControlNet is as it was."""
        self.end_evaluation()
        if self._patch is not None:
            self._patch.release()


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _replaced(value: Any, fresh: dict[int, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return fresh.get(id(value), value)
    if type(value) in (list, tuple):
        return type(value)(_replaced(part, fresh) for part in value)
    if type(value) is dict:
        return {key: _replaced(part, fresh) for key, part in value.items()}
    return value
