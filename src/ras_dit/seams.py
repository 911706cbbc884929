"""How the library gets into a pipeline and out again: instance-level, each change with its own undo."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable
from typing import Any


def why_frozen(root: Any) -> str | None:
    """Why region steps cannot run in the compiled blocks of a transformer as they are; None if they can.

    Frozen weights (``torch._inductor.config.freezing``) are constants of the compiled code, and so is every tensor
    that PyTorch comes upon by way of a module: cached keys and values would be compiled in.
    """
    import torch

    config = sys.modules.get("torch._inductor.config")  # nobody can have set it otherwise, and importing it is slow
    if config is None or not config.freezing or torch.is_grad_enabled():
        return None
    if all(getattr(module, "_compiled_call_impl", None) is None for module in root.modules()):
        return None
    return (
        "The transformer's blocks are compiled with frozen weights (torch._inductor.config.freezing), which would make "
        "constants of cached keys and values: the whole run was dense. Set freezing to False and compile them again, "
        "or take a plan without region steps, such as preset 'balanced'."
    )


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
        self._had_own = self._name in vars(self._owner)
        self._original = getattr(self._owner, self._name)
        original = self._original
        replacement = self._wrap(original)

        @functools.wraps(original)
        def patched(*args: Any, **kwargs: Any) -> Any:
            if self._is_released:  # somebody wrapped us and we could not be taken out
                return original(*args, **kwargs)
            return replacement(*args, **kwargs)

        patched.of = self  # type: ignore[attr-defined]
        self._patched = patched
        setattr(self._owner, self._name, patched)

    def is_installed(self) -> bool:
        """False after somebody else put an older method back, as accelerate does when it removes an offload hook."""
        return self._patched in (vars(self._owner).get(self._name), vars(self._owner).get("_old_forward"))

    def ensure(self) -> None:
        """Wrap again if the wrapper was lost."""
        if not self.is_installed():
            self._install()

    def restore_in(self, attributes: dict[str, Any]) -> None:
        """Put back what was there before and was not released since, in the attributes of the instance or a copy."""
        if attributes.get(self._name) is not self._patched:
            return
        patch = self
        while (under := getattr(patch._original, "of", None)) is not None and under._is_released:
            patch = under
        if patch._had_own:
            attributes[self._name] = patch._original
        else:
            del attributes[self._name]

    def release(self) -> None:
        """Put the original back; where another wrapper holds ours (accelerate's offload does), change what it calls."""
        self._is_released = True
        attributes = vars(self._owner)
        if attributes.get(self._name) is self._patched:
            self.restore_in(attributes)
        elif attributes.get("_old_forward") is self._patched:
            self._owner._old_forward = self._original


class PlainCopies:
    """While in place, `copy.deepcopy` of an instance gives what it would give without our patches.

    A wrapper that is copied along would still call the original instance: pipelines that sample sound beside the
    video, or every frame by itself, copy their scheduler.

    Args:
        owner: the instance.
        patches: its patched methods; those of other sessions on the same instance are taken out as well.
    """

    def __init__(self, owner: Any, patches: list[PatchedMethod]) -> None:
        self._owner = owner
        self._patches = patches
        self._is_released = False
        self._under = vars(owner).get("__deepcopy__")  # of another session on the same instance

        def deepcopy(memo: dict[int, Any]) -> Any:
            plain = object.__new__(type(owner))
            memo[id(owner)] = plain
            attributes = {name: value for name, value in vars(owner).items() if name != "__deepcopy__"}
            copies: PlainCopies | None = self
            while copies is not None:
                for patch in copies._patches:
                    patch.restore_in(attributes)
                copies = None if copies._under is None else copies._under.of
            plain.__dict__.update(copy.deepcopy(attributes, memo))
            return plain

        deepcopy.of = self  # type: ignore[attr-defined]
        self._deepcopy = deepcopy
        owner.__deepcopy__ = deepcopy

    def release(self) -> None:
        """Copies are of the instance as it is again."""
        self._is_released = True
        if vars(self._owner).get("__deepcopy__") is not self._deepcopy:
            return
        under = self._under
        while under is not None and under.of._is_released:
            under = under.of._under
        if under is None:
            del self._owner.__deepcopy__
        else:
            self._owner.__deepcopy__ = under


class NoCopies:
    """While in place, `copy.deepcopy` of an instance is refused: a copy would go on computing with its weights.

    Args:
        owner: a transformer.
        reason: what the error says.
    """

    def __init__(self, owner: Any, reason: str) -> None:
        self._owner = owner

        def deepcopy(memo: dict[int, Any]) -> Any:
            raise ValueError(reason)

        owner.__deepcopy__ = deepcopy

    def ensure(self) -> None:
        """Nobody takes this out."""

    def release(self) -> None:
        """Copies are allowed again."""
        vars(self._owner).pop("__deepcopy__", None)


class WatchedLoop:
    """A progress bar that says when the loop under it is left before its end.

    Args:
        bar: what the pipeline's ``progress_bar`` gave.
        is_interrupted: whether a loop that ended was cut short.
        on_left: called when it was, or an error went through.
    """

    def __init__(self, bar: Any, is_interrupted: Callable[[], bool], on_left: Callable[[], None]) -> None:
        self._bar = bar
        self._is_interrupted = is_interrupted
        self._on_left = on_left

    def __enter__(self) -> Any:
        return self._bar.__enter__()

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> Any:
        if kind is not None or self._is_interrupted():
            self._on_left()
        return self._bar.__exit__(kind, error, traceback)

    def __iter__(self) -> Any:
        return iter(self._bar)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bar, name)
