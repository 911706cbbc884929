"""Memory at addresses that stay from step to step and from run to run, as CUDA graphs read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch


def lasting(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Memory, zeroed, at an address that compiled code may count on. It is reserved outside of compiled code: what a
    CUDA graph returns is overwritten when the next transformer call begins."""
    with torch.inference_mode(False):  # a tensor of that mode could not be written to outside of it
        memory = torch.zeros(tuple(shape), dtype=dtype, device=device)
    torch._dynamo.mark_static_address(memory, guard=False)
    return memory


class FixedAddresses:
    """Where tensors lie that are made anew for every transformer call and read inside compiled blocks.

    PyTorch takes all tensors that a compiled block finds by way of a module for ones that stay where they are, as
    parameters do, and records a CUDA graph once more whenever one does not. So they are copied to where those of the
    call before lay: the nth of a shape and type has its place.
    """

    def __init__(self) -> None:
        self._places: dict[object, list[torch.Tensor]] = {}
        self._taken: Counter[object] = Counter()
        self._of_call: dict[object, tuple[torch.Tensor, torch.Tensor]] = {}

    def begin_call(self) -> None:
        """A transformer call begins: what was laid out for the last one, and what its compiled blocks returned, is not
        needed any more. (Unless PyTorch hears of it, every block ends what the one before it returned.)"""
        torch.compiler.cudagraph_mark_step_begin()
        self._taken.clear()
        self._of_call.clear()

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same values at an address that stays. What is asked for again in a call is not copied again."""
        if not tensor.numel():
            return tensor
        name = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if name not in self._of_call:
            kind = (tensor.shape, tensor.dtype, tensor.device)
            places = self._places.setdefault(kind, [])
            if self._taken[kind] == len(places):
                places.append(lasting(tensor.shape, tensor.dtype, tensor.device))
            place = places[self._taken[kind]].copy_(tensor)
            self._taken[kind] += 1
            self._of_call[name] = (tensor, place)  # held, so that no other tensor comes to lie at its address
        return self._of_call[name][1]
