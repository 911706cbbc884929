"""How keys and values are kept between steps: in which type, where, and at which addresses."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ras_dit.addresses import FixedAddresses, lasting
from ras_dit.kernels import Operations


@dataclass(frozen=True)
class Like:
    """What memory a tensor needs: shape, type and device."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Like:
        return cls(tuple(tensor.shape), tensor.dtype, tensor.device)


def is_device(place: torch.device, device: torch.device) -> bool:
    """Whether a device is the one named (``cuda`` names any of them)."""
    return place.type == device.type and place.index in (None, device.index)


@dataclass(frozen=True)
class KVStorage:
    """How keys and values are kept between steps.

    Attributes:
        dtype: type they are kept in; None as computed. Rows of the step under way are attended to as computed.
        device: where they are kept; None where they are computed.
        keeps: False keeps none: computed rows then attend among themselves.
        operations: kernels that write the rows; None for torch.
        addresses: all that compiled blocks read stays where it is from step to step and from run to run, as CUDA graphs
            need: keys and values, and at these addresses what is laid out for a step. None if it need not.
    """

    dtype: torch.dtype | None = None
    device: torch.device | None = None
    keeps: bool = True
    operations: Operations | None = None
    addresses: FixedAddresses | None = None

    @property
    def is_static(self) -> bool:
        return self.addresses is not None

    def is_as_computed(self, tensor: torch.Tensor | Like) -> bool:
        """Whether a key or value is kept in the type and at the place of computing."""
        is_there = self.device is None or is_device(self.device, tensor.device)
        return is_there and self.dtype in (None, tensor.dtype)

    def fixed(self, tensor: torch.Tensor) -> torch.Tensor:
        """What is laid out for a step, at an address that stays if need be."""
        return tensor if self.addresses is None else self.addresses.of(tensor)

    def store(self, tensor: torch.Tensor) -> torch.Tensor:
        """A key or value as it is kept, contiguous."""
        return self.bounded(tensor).to(device=self.device, dtype=self.dtype).contiguous()

    def bounded(self, tensor: torch.Tensor) -> torch.Tensor:
        """A key or value within the range of the type that it is kept in."""
        if self.dtype is None or torch.finfo(self.dtype).max >= torch.finfo(tensor.dtype).max:
            return tensor
        limit = torch.finfo(self.dtype).max
        if self.dtype.itemsize == 1:  # which cannot be clamped, and may have no infinity
            return tensor.clamp(-limit, limit)
        return tensor.to(self.dtype).clamp_(-limit, limit)  # bfloat16 would round float16's limit up

    def reserve(self, likes: Like) -> torch.Tensor:
        """Memory for a key or value, at an address that compiled code may count on."""
        place = self.device if self.device is not None else likes.device
        return lasting(likes.shape, self.dtype or likes.dtype, place)


AS_COMPUTED = KVStorage()
