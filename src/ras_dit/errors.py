"""Errors that are the machine's: not the user's, and not a method's."""

from __future__ import annotations


class WeightsTooLargeError(RuntimeError):
    """Memory ran out while the weights of a pipeline were put on a device."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, of a GPU or (a plain RuntimeError, as of CUDA's late errors and of MPS) of the CPU."""
    names = {kind.__name__ for kind in type(error).__mro__}
    said = str(error).lower() if isinstance(error, RuntimeError) else ""
    is_said = "out of memory" in said or "can't allocate memory" in said
    return is_said or bool(names & {"OutOfMemoryError", "MemoryError"})
