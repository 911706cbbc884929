"""What RAS itself adds to a step: its parts wrapped on the run under way, to be timed or to be seen by the profiler."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from ras_dit.bench.loops import synchronize, weights_device
from ras_dit.seams import PatchedMethod

if TYPE_CHECKING:
    from ras_dit.engine import Handle

SELECTION, FORECAST, ROWS = "selection", "forecast", "rows"
PARTS = (SELECTION, FORECAST, ROWS)
"""``selection``: scores and the choice made of them, after every evaluation. ``forecast``: what tokens that were not
computed are given. ``rows``: which rows to take is laid out for the modules (taking and putting back is not in it)."""

Around = Callable[[str, int], AbstractContextManager[Any]]
"""(part, evaluation) -> what is entered around it."""


@contextmanager
def around_parts(handle: Handle, around: Around) -> Iterator[None]:
    """Enter something around every part of RAS in the runs inside the block.

    Args:
        handle: RAS, enabled. The wrappers are on the objects of one run at a time; nothing else is changed.
        around: makes what is entered.
    """
    session: Any = handle._session
    patches: list[PatchedMethod] = []
    seams = session._attached[session.transformer].seams
    patches.append(PatchedMethod(seams, "begin", _wrapped(session, around, ROWS)))
    seen: list[Any] = []

    def look(*_: Any) -> None:
        generation = session._generation
        if generation is None or any(generation is one for one in seen):
            return
        seen[:] = [generation]
        for name, part in (("begin_call", ROWS), ("end_call", FORECAST), ("observe", SELECTION)):
            patches.append(PatchedMethod(generation, name, _wrapped(session, around, part)))

    hook = session.transformer.register_forward_pre_hook(look)
    try:
        yield
    finally:
        hook.remove()
        for patch in patches:
            patch.release()


def _wrapped(session: Any, around: Around, part: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def inside(*args: Any, **kwargs: Any) -> Any:
            with around(part, session._generation.index):
                return original(*args, **kwargs)

        return inside

    return wrap


class PartTimer:
    """Seconds of every part of RAS, evaluation by evaluation.

    On a GPU it is the time between two events of the device's queue, which counts waiting for the host as well.
    """

    def __init__(self, pipe: Any) -> None:
        self._device = weights_device(pipe)
        self._spans: list[tuple[str, int, Any, Any]] = []

    def _mark(self) -> Any:
        import torch

        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def __call__(self, part: str, index: int) -> Iterator[None]:
        begun = self._mark()
        yield
        self._spans.append((part, index, begun, self._mark()))

    def seconds(self) -> dict[str, dict[int, float]]:
        """Part -> evaluation -> seconds, all branches together."""
        synchronize(self._device)
        found: dict[str, dict[int, float]] = {part: {} for part in PARTS}
        for part, index, begun, ended in self._spans:
            spent = ended - begun if self._device.type != "cuda" else begun.elapsed_time(ended) / 1e3
            found[part][index] = found[part].get(index, 0.0) + spent
        return found
