"""Tensors in memory layouts of all sorts, in storage that shows what was written beside them."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from hypothesis import strategies as st

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if IS_INTERPRETED else "cuda"
NAN = float("nan")

# one rounding, and sums in another order; the interpreter cuts off where it should round to bfloat16
ROUNDING = {torch.float64: 1e-6, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}

dtypes = st.sampled_from(list(ROUNDING))
layouts = st.sampled_from(["contiguous", "reversed", "every second", "inside"])
seeds = st.integers(0, 2**31)


@dataclass
class Laid:
    """A tensor and the storage around it.

    Attributes:
        tensor: a view with the layout asked for.
        around: all of the storage; NaN (or -1) beside the view.
    """

    tensor: torch.Tensor
    around: torch.Tensor

    def is_alone(self) -> bool:
        """Nothing beside the view was written. The view is overwritten."""
        fill = NAN if self.around.dtype.is_floating_point else -1
        self.tensor.fill_(fill)
        return bool(self.around.isnan().all() if self.around.dtype.is_floating_point else (self.around == -1).all())


def laid(tensor: torch.Tensor, layout: str) -> Laid:
    """A copy of a tensor on the tests' device, in one of `layouts`."""
    shape, fill = list(tensor.shape), NAN if tensor.dtype.is_floating_point else -1
    if layout == "reversed":
        around = torch.full(shape[::-1], fill, dtype=tensor.dtype, device=DEVICE)
        view = around.permute(*range(tensor.ndim - 1, -1, -1))
    elif layout == "every second":
        around = torch.full([*shape[:-1], 2 * shape[-1]], fill, dtype=tensor.dtype, device=DEVICE)
        view = around[..., ::2]
    elif layout == "inside":
        around = torch.full([size + 3 for size in shape], fill, dtype=tensor.dtype, device=DEVICE)
        view = around[tuple(slice(1, 1 + size) for size in shape)]
    else:
        around = torch.full(shape, fill, dtype=tensor.dtype, device=DEVICE)
        view = around
    view.copy_(tensor)
    assert view.shape == tensor.shape
    return Laid(view, around)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def places(seed: int, num_rows: int, length: int, count: int) -> torch.Tensor:
    """Distinct ascending positions below ``length``, others for every row [num_rows, count]."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randperm(length, generator=generator)[:count].sort().values for _ in range(num_rows)]
    return torch.stack(rows)


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal within the rounding of their type; NaN where, and only where, NaN is expected."""
    rounding = ROUNDING[expected.dtype]
    torch.testing.assert_close(actual, expected, rtol=rounding, atol=rounding, equal_nan=True)
