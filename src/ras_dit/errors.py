"""Errors that are the machine's: not the user's, and not a method's."""

from __future__ import annotations


class WeightsTooLargeError(RuntimeError):
    """Memory ran out while the weights of a pipeline were put on a device."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, of a GPU or (a plain RuntimeError) of the CPU."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"OutOfMemoryError", "MemoryError"}) or "can't allocate memory" in str(error)
