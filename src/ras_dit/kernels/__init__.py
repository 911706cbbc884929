"""Optional Triton kernels, each with a twin in plain torch. Triton is imported when somebody asks for it.

All are off unless ``RASConfig(kernels="triton")`` asks for them; `docs/kernels.md` says what each does.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ras_dit.kernels import reference
from ras_dit.kernels.linear import is_plain_linear
from ras_dit.kernels.tile import Tile
from ras_dit.selection import top_k

__all__ = ["REFERENCE", "Operations", "Tile", "is_plain_linear", "operations_for", "triton_operations"]


@dataclass(frozen=True)
class Operations:
    """The functions of `ras_dit.kernels.reference` and `ras_dit.selection.top_k`, or kernels with the same arguments.

    Attributes:
        name: ``reference`` or ``triton``.
        is_interpreted: they run on the CPU, by Triton's interpreter.
        merge_rows: fresh keys and values to their places.
        linear_scatter: a linear layer with rows written where they belong.
        predicted_error: a score per token.
        top_k: the best of them.
        record_and_fill: history, forecast and full noise.
    """

    name: str
    is_interpreted: bool
    merge_rows: Callable[..., None]
    linear_scatter: Callable[..., None]
    predicted_error: Callable[..., torch.Tensor]
    top_k: Callable[..., torch.Tensor]
    record_and_fill: Callable[..., torch.Tensor]


REFERENCE = Operations(
    "reference",
    False,
    reference.merge_rows,
    reference.linear_scatter,
    reference.predicted_error,
    top_k,
    reference.record_and_fill,
)
"""The twins, in plain torch."""


def triton_operations() -> Operations:
    """The kernels.

    Raises:
        ValueError: Triton is not installed.
    """
    if importlib.util.find_spec("triton") is None:
        raise ValueError(
            "kernels: got 'triton', but Triton is not installed; allowed: 'torch'. Install the extra "
            "(in the checkout: pip install '.[kernels]'; Linux), or leave kernels out."
        )
    import triton

    from ras_dit.kernels import triton_choice, triton_history, triton_linear, triton_merge

    return Operations(
        "triton",
        not isinstance(triton_merge._merge_kernel, triton.JITFunction),
        triton_merge.merge_rows,
        triton_linear.linear_scatter,
        triton_choice.predicted_error,
        triton_choice.top_k,
        triton_history.record_and_fill,
    )


def operations_for(choice: str, device: torch.device) -> Operations | None:
    """The kernels that `RASConfig.kernels` asks for; None for torch.

    Args:
        choice: ``torch`` or ``triton``.
        device: where the pipeline runs.

    Raises:
        ValueError: Triton is not installed, or cannot run there.
    """
    if choice == "torch":
        return None
    operations = triton_operations()
    if device.type != "cuda" and not operations.is_interpreted:
        raise ValueError(
            f"kernels: got 'triton' for a pipeline on {device.type!r}; allowed there: 'torch'. Move the pipeline to a "
            'CUDA device before ras_dit.enable, or leave kernels="torch".'
        )
    return operations
