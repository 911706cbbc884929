"""Where a kernel runs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def on_device_of(tensor: torch.Tensor) -> AbstractContextManager[object]:
    """The device of a tensor made the current one, where Triton launches; a compiled graph sees to it itself."""
    if torch.compiler.is_compiling() or not tensor.is_cuda or tensor.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(tensor.device)
