"""How the library gets into a pipeline and out again: instance-level, each change with its own undo."""

from __future__ import annotations

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

    def release(self) -> None:
        """Put the original back; where another wrapper holds ours (accelerate's offload does), change what it calls."""
        self._is_released = True
        attributes = vars(self._owner)
        if attributes.get(self._name) is self._patched:
            if self._had_own:
                setattr(self._owner, self._name, self._original)
            else:
                delattr(self._owner, self._name)
        elif attributes.get("_old_forward") is self._patched:
            self._owner._old_forward = self._original
