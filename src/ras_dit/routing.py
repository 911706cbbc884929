"""The short way to a layer's seam for attention calls of blocks that are not compiled.

`AttentionMerge` looks at every operation of an attention module to find the one that matters. Here the processor's own
code runs with a function of the layer's in place of the one that it names.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch.nn import functional

from ras_dit.attention import AttentionMerge, LayerSeam

_DIRECT, _DISPATCHED = "scaled_dot_product_attention", "dispatch_attention_fn"


class AttentionRoute:
    """Calls one attention module so that its attention calls reach the layer's seam.

    A dense step goes by way of `AttentionMerge`, which misses none, and counts those that the short way would have
    caught. Region steps take that if it would have caught all.

    While a call is under way the module's processor is a stand-in: of a class derived from its own and of the same
    name, with the same attributes, whose ``__call__`` is a copy that finds the layer's function under the name of
    torch's or diffusers' (and the other names of its module as they were in the last dense step). Left to
    `AttentionMerge` are modules without a processor, processors that are modules themselves (IP-Adapters), wrapped
    ones, those whose ``__call__`` leaves attention to other functions, and calls without any text (``text_reuse``).

    Args:
        layer: what attention calls do.
        module: the attention module.
    """

    def __init__(self, layer: LayerSeam, module: torch.nn.Module) -> None:
        self._layer, self._module = layer, module
        self._made_of: tuple[type, FunctionType] | None = None
        self._finds: dict[str, Any] = {}
        self._class: type | None = None
        self._stands_for: Any = None  # the processor whose calls were counted, all of them caught
        self._is_counting = False
        self._num_caught = 0

    def __call__(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of the module's forward, ``original`` as it was."""
        if torch.compiler.is_compiling():
            with AttentionMerge(self._layer):
                return original(*args, **kwargs)
        processor = vars(self._module).get("processor")
        if self._layer.kind != "region":
            return self._counted(processor, original, args, kwargs)
        if processor is not None and processor is self._stands_for and not _has_nothing(args, kwargs):
            return self._called(processor, original, args, kwargs)
        with AttentionMerge(self._layer):
            return original(*args, **kwargs)

    def _counted(
        self, processor: Any, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self._stands_for, self._num_caught = None, 0
        with AttentionMerge(self._layer):
            if not self._prepare(processor):
                return original(*args, **kwargs)
            self._is_counting = True
            try:
                result = self._called(processor, original, args, kwargs)
            finally:
                self._is_counting = False
        if self._num_caught == self._layer.position:
            self._stands_for = processor
        return result

    def _called(
        self, processor: Any, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        assert self._class is not None
        stand_in: Any = object.__new__(self._class)
        stand_in.__dict__ = vars(processor)
        attributes = vars(self._module)
        attributes["processor"] = stand_in
        try:
            return original(*args, **kwargs)
        finally:
            if attributes.get("processor") is stand_in:
                attributes["processor"] = processor

    def _prepare(self, processor: Any) -> bool:
        """Make the stand-in's class, or bring what it finds up to date; False if there is no short way."""
        code = type(processor).__call__
        if not isinstance(code, FunctionType) or hasattr(code, "__wrapped__") or not hasattr(processor, "__dict__"):
            return False
        routed: dict[str, Any] = {}
        known = code.__globals__
        if _DIRECT in code.__code__.co_names and known.get("F") is functional:
            routed["F"] = _Functional(self._attend)
        if _DISPATCHED in code.__code__.co_names and _DISPATCHED in known:
            routed[_DISPATCHED] = functools.partial(self._dispatch, known[_DISPATCHED])
        if not routed:
            return False
        if (type(processor), code) != self._made_of:
            self._made_of, self._finds = (type(processor), code), {}
            called = FunctionType(code.__code__, self._finds, code.__name__, code.__defaults__, code.__closure__)
            called.__kwdefaults__ = copy.copy(code.__kwdefaults__)
            called.__signature__ = inspect.signature(code)  # type: ignore[attr-defined]  # asked for in every call
            own = type(processor)
            described = {"__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__}
            self._class = type(own.__name__, (own,), {**described, "__call__": called})
        self._finds.clear()
        self._finds.update(known)
        self._finds.update(routed)
        return True

    def _attend(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """In place of torch's function."""
        if not self._is_counting:
            return self._layer.attend(*args, **kwargs)
        before = self._layer.position
        result = functional.scaled_dot_product_attention(*args, **kwargs)
        self._num_caught += self._layer.position - before
        return result

    def _dispatch(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """In place of diffusers' function, which leads to torch's by a number of ways."""
        if not self._is_counting:
            with AttentionMerge(self._layer):
                return original(*args, **kwargs)
        before = self._layer.position
        result = original(*args, **kwargs)
        self._num_caught += self._layer.position - before
        return result


class _Functional:
    """`torch.nn.functional` with another attention function."""

    def __init__(self, attend: Callable[..., torch.Tensor]) -> None:
        self.scaled_dot_product_attention = attend

    def __getattr__(self, name: str) -> Any:
        return getattr(functional, name)


def _has_nothing(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an argument has no rows: `AttentionMerge` knows what reshapes of it mean."""
    return any(isinstance(each, torch.Tensor) and not each.numel() for each in (*args, *kwargs.values()))
