"""How the library gets into a pipeline and out again: instance-level, each change with its own undo."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any


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
        """Put the original back in a copy of the instance's attributes."""
        if attributes.get(self._name) is not self._patched:
            return
        if self._had_own:
            attributes[self._name] = self._original
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
        patches: its patched methods; all of them are released when this is.
    """

    def __init__(self, owner: Any, patches: list[PatchedMethod]) -> None:
        self._owner = owner

        def deepcopy(memo: dict[int, Any]) -> Any:
            plain = object.__new__(type(owner))
            memo[id(owner)] = plain
            attributes = {name: value for name, value in vars(owner).items() if name != "__deepcopy__"}
            for patch in patches:
                patch.restore_in(attributes)
            plain.__dict__.update(copy.deepcopy(attributes, memo))
            return plain

        owner.__deepcopy__ = deepcopy

    def release(self) -> None:
        """Copies are of the instance as it is again."""
        vars(self._owner).pop("__deepcopy__", None)
