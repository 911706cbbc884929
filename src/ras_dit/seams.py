"""How the library gets into a pipeline and out again: instance-level, each change with its own undo."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any


@dataclass(eq=False)
class _Layer:
    """One wrapper that a `PatchedMethod` put over a method, and what lay there before.

    Others who wrap ours copy its attributes along (`functools.update_wrapper`), so that a wrapper is told by being
    this very function.
    """

    patch: PatchedMethod
    original: Callable[..., Any]
    had_own: bool
    function: Callable[..., Any] | None = None

    @staticmethod
    def of(function: Any) -> _Layer | None:
        """The record of a function; None if it is none of ours."""
        layer = getattr(function, "ras_dit_layer", None)
        return layer if isinstance(layer, _Layer) and layer.function is function else None


class PatchedMethod:
    """One method of one instance, wrapped; the class and all other instances stay as they are.

    Args:
        owner: the instance.
        name: the method's name.
        wrap: takes the method as it was and returns its replacement (the signature is kept for ``inspect``).
    """

    def __init__(self, owner: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        self._owner = owner
        self._name = name
        self._wrap = wrap
        self._is_released = False
        self._install()

    def _install(self) -> None:
        original = getattr(self._owner, self._name)
        self._layer = _Layer(self, original, had_own=self._name in vars(self._owner))
        replacement = self._wrap(original)

        @functools.wraps(original)
        def patched(*args: Any, **kwargs: Any) -> Any:
            if self._is_released:  # somebody wrapped us and we could not be taken out
                return original(*args, **kwargs)
            return replacement(*args, **kwargs)

        patched.ras_dit_layer = self._layer  # type: ignore[attr-defined]
        self._layer.function = self._patched = patched
        setattr(self._owner, self._name, patched)

    def is_installed(self) -> bool:
        """False after somebody else put an older method back, as accelerate does when it removes an offload hook. True
        also where somebody has wrapped ours (``functools.wraps``, hooks of accelerate and diffusers)."""
        found = vars(self._owner).get(self._name)
        while found is not None and found is not self._patched:
            found = getattr(found, "__wrapped__", None)
        return self._patched in (found, vars(self._owner).get("_old_forward"))

    def ensure(self) -> None:
        """Wrap again if the wrapper was lost."""
        if not self.is_installed():
            self._install()

    def restore_in(self, attributes: dict[str, Any]) -> None:
        """Put back what was there before and was not released since, in the attributes of the instance or a copy."""
        if attributes.get(self._name) is not self._patched:
            return
        layer = self._layer
        while (under := _Layer.of(layer.original)) is not None and under.patch._is_released:
            layer = under
        if layer.had_own:
            attributes[self._name] = layer.original
        else:
            del attributes[self._name]

    def release(self) -> None:
        """Put the original back; where another wrapper holds ours (accelerate's offload does), change what it calls."""
        self._is_released = True
        attributes = vars(self._owner)
        if attributes.get(self._name) is self._patched:
            self.restore_in(attributes)
        elif attributes.get("_old_forward") is self._patched:
            self._owner._old_forward = self._layer.original


class _OwnCopies:
    """What `copy` and `pickle` make of one instance, over those of another session if there is one."""

    _NAMES = ("__deepcopy__", "__getstate__")  # looked up at the instance (`copy.copy` and pickles by the second)

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self._is_released = False
        self._under = {name: vars(owner).get(name) for name in self._NAMES}

        def deepcopy(memo: dict[int, Any]) -> Any:
            return self._copied(memo)

        def getstate() -> dict[str, Any]:
            return self._state()

        self._own: dict[str, Any] = dict(zip(self._NAMES, (deepcopy, getstate), strict=True))
        for function in self._own.values():
            function.of = self
        vars(owner).update(self._own)

    def _copied(self, memo: dict[int, Any]) -> Any:
        raise NotImplementedError

    def _state(self) -> dict[str, Any]:
        raise NotImplementedError

    def _below(self) -> _OwnCopies | None:
        below: _OwnCopies | None = getattr(self._under["__deepcopy__"], "of", None)
        return below

    def release(self) -> None:
        """Copies are made as before."""
        self._is_released = True
        attributes = vars(self._owner)
        if attributes.get("__deepcopy__") is not self._own["__deepcopy__"]:
            return
        lowest: _OwnCopies = self  # of those that were released
        while (below := lowest._below()) is not None and below._is_released:
            lowest = below
        for name, under in lowest._under.items():
            if under is None:
                del attributes[name]
            else:
                attributes[name] = under


class PlainCopies(_OwnCopies):
    """While in place, `copy.copy`, `copy.deepcopy` and `pickle` of an instance give what they would give without our
    patches.

    A wrapper that is copied along would still call the original instance: pipelines that sample sound beside the
    video, or every frame by itself, copy their scheduler.

    Args:
        owner: the instance.
        patches: its patched methods; those of other sessions on the same instance are taken out as well.
    """

    def __init__(self, owner: Any, patches: list[PatchedMethod]) -> None:
        super().__init__(owner)
        self._patches = patches

    def _copied(self, memo: dict[int, Any]) -> Any:
        plain = object.__new__(type(self._owner))
        memo[id(self._owner)] = plain
        plain.__dict__.update(copy.deepcopy(self._state(), memo))
        return plain

    def _state(self) -> dict[str, Any]:
        attributes = {name: value for name, value in vars(self._owner).items() if name not in self._NAMES}
        copies: _OwnCopies | None = self
        while copies is not None:
            for patch in copies._patches if isinstance(copies, PlainCopies) else ():
                patch.restore_in(attributes)
            copies = copies._below()
        return attributes


class NoCopies(_OwnCopies):
    """While in place, copies and pickles of an instance are refused: a copy would go on computing with its weights.

    Args:
        owner: a transformer or ControlNet.
        reason: what the error says.
    """

    def __init__(self, owner: Any, reason: str) -> None:
        super().__init__(owner)
        self._reason = reason

    def _copied(self, memo: dict[int, Any]) -> Any:
        raise ValueError(self._reason)

    def _state(self) -> dict[str, Any]:
        raise ValueError(self._reason)

    def ensure(self) -> None:
        """Nobody takes this out."""


class KeptResults:
    """Functions that a pipeline's ``__call__`` calls with the same arguments in every step: called once while this is
    in place.

    Python looks for ``__call__`` at the class. So the instance gets a class of its own, derived from its class and of
    the same name, whose ``__call__`` is a copy that finds these functions under their global names (and the module's
    other names as they were then). The class, its module and all other instances stay as they are. Left alone is a
    ``__call__`` that names none of the functions, as that of a subclass may, and one that does not stand under
    ``torch.no_grad`` alone, as those of diffusers do: somebody else has wrapped it.

    Args:
        pipe: the pipeline.
        names: of functions whose result depends on their arguments alone, which are numbers, and is never changed.
    """

    MOST = 2  # results of a function: Lumina-Next has two tables where `scaling_watershed` takes effect midway

    def __init__(self, pipe: Any, names: tuple[str, ...]) -> None:
        self._pipe, self._original = pipe, type(pipe)
        self._own: type | None = None
        self._results: dict[str, dict[object, Any]] = {}
        inner = _under_no_grad(self._original.__call__)
        if inner is None:
            return
        known = [name for name in names if name in inner.__code__.co_names and name in inner.__globals__]
        if known:
            self._own = self._derived(inner, {name: self._keeping(name, inner.__globals__[name]) for name in known})
            pipe.__class__ = self._own

    def _derived(self, inner: FunctionType, functions: dict[str, Callable[..., Any]]) -> type:
        import torch

        finds = {**inner.__globals__, **functions}
        call = FunctionType(inner.__code__, finds, inner.__name__, inner.__defaults__, inner.__closure__)
        call.__kwdefaults__ = inner.__kwdefaults__
        functools.update_wrapper(call, inner)
        described = {name: getattr(self._original, name) for name in ("__module__", "__qualname__", "__doc__")}
        return type(self._original.__name__, (self._original,), {**described, "__call__": torch.no_grad()(call)})

    def _keeping(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        results = self._results.setdefault(name, {})

        @functools.wraps(function)
        def kept(*args: Any, **kwargs: Any) -> Any:
            asked = (args, tuple(sorted(kwargs.items())))
            if self._own is None or asked not in results:
                result = function(*args, **kwargs)
                if self._own is None:  # released
                    return result
                if len(results) == self.MOST:
                    del results[next(iter(results))]
                results[asked] = result
            return results[asked]

        return kept

    def ensure(self) -> None:
        """Nobody takes this out."""

    def release(self) -> None:
        """The pipeline is of its own class again."""
        if self._own is not None and type(self._pipe) is self._own:
            self._pipe.__class__ = self._original
        self._own = self._pipe = None
        for results in self._results.values():
            results.clear()


def _under_no_grad(call: Any) -> FunctionType | None:
    """The function that stands under ``torch.no_grad`` and under nothing else; None if there is no such."""
    import torch

    inner = getattr(call, "__wrapped__", None)
    if not isinstance(inner, FunctionType) or hasattr(inner, "__wrapped__"):
        return None
    held = [cell.cell_contents for cell in getattr(call, "__closure__", None) or ()]
    return inner if any(isinstance(getattr(each, "__self__", None), torch.no_grad) for each in held) else None


class WatchedLoop:
    """A progress bar that says when the loop under it is left before its end.

    Args:
        bar: what the pipeline's ``progress_bar`` gave.
        is_cut_short: whether a loop that ended was.
        on_left: called when it was, or an error went through.
    """

    def __init__(self, bar: Any, is_cut_short: Callable[[], bool], on_left: Callable[[], None]) -> None:
        self._bar = bar
        self._is_cut_short = is_cut_short
        self._on_left = on_left

    def __enter__(self) -> Any:
        return self._bar.__enter__()

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> Any:
        try:
            if kind is not None or self._is_cut_short():
                self._on_left()
        except Exception:  # a GPU that failed fails again when it is asked for its clocks: the first error is the one
            if kind is None:
                raise
        return self._bar.__exit__(kind, error, traceback)

    def __iter__(self) -> Any:
        return iter(self._bar)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bar, name)


def watched_bar(
    pipe: Any,
    on_entered: Callable[[], None],
    is_stuck: Callable[[], bool],
    on_left: Callable[[], None],
    original: Callable[..., Any],
) -> Callable[..., Any]:
    """A pipeline's ``progress_bar`` that says when its denoising loop begins, and when that is left before its end.

    Args:
        pipe: the pipeline.
        on_entered: called as the bar is made.
        is_stuck: whether a loop that ends now has got nowhere.
        on_left: see `WatchedLoop`.
        original: the method as it was.
    """

    def progress_bar(*args: Any, **kwargs: Any) -> Any:
        bar = original(*args, **kwargs)
        on_entered()
        return WatchedLoop(bar, lambda: bool(getattr(pipe, "_interrupt", False)) or is_stuck(), on_left)

    return progress_bar
