"""Single layers on a CPU, as a region step runs them fastest; dense steps are left as they are.

Linear layers take their rows in as many calls as are fastest: oneDNN cuts rows into blocks for the threads by their
number, and for some numbers leaves threads without work, so that two calls of half the rows are faster
(docs/performance.md, ``python -m benchmarks.cpu_linear``). Patch embeddings take pictures with channels last, which
oneDNN need not reorder and which come out as rows of tokens.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ras_dit.seams import PatchedMethod

MIN_FLOPS = 2.5e8
"""Layers below are not split: a call of so little work takes as long as its fixed cost."""

PARTS = (1, 2, 4)
REPEATS = 2


class CPULayers:
    """The layers of one transformer that run differently in region steps, and how many calls each size of them takes.

    Every size (rows, inputs, outputs) is timed once, on the rows that a region step brings first. Chunks of rows go
    through the module's own forward: adapters, hooks and quantised weights are where they were. Rows do not depend on
    each other, but their rounding may depend on their number, so nothing is changed under
    ``torch.use_deterministic_algorithms(True)``, nor inside a compiled block.

    Args:
        root: the transformer. Only its layers on a CPU are touched: plain ``nn.Linear`` in 16-bit types, and patch
            embeddings (``nn.Conv2d`` whose kernel is its stride).
        is_region_step: whether a region step is under way.
    """

    def __init__(self, root: nn.Module, is_region_step: Callable[[], bool]) -> None:
        self._is_region_step = is_region_step
        self._parts: dict[tuple[int, int, int], int] = {}
        self._patches: list[PatchedMethod] = []
        for module in root.modules():
            if wrap := self._wrapper_for(module):
                self._patches.append(PatchedMethod(module, "forward", wrap))

    def _wrapper_for(self, module: nn.Module) -> Callable[[Callable[..., Any]], Callable[..., Any]] | None:
        """What wraps a layer's forward, None for one that is left alone."""
        if type(module) is nn.Linear and _is_half_on_cpu(module.weight):
            return functools.partial(self._split_forward, module)
        if type(module) is nn.Conv2d and module.weight.device.type == "cpu" and module.kernel_size == module.stride:
            return self._channels_last_forward
        return None

    @property
    def parts(self) -> dict[tuple[int, int, int], int]:
        """Calls by (rows, inputs, outputs), as measured so far."""
        return dict(self._parts)

    def ensure(self) -> None:
        """Put back what somebody else took out (accelerate's offload does)."""
        for patch in self._patches:
            patch.ensure()

    def close(self) -> None:
        """Leave the layers as they were."""
        for patch in self._patches:
            patch.release()
        self._patches = []

    def _split_forward(self, layer: nn.Linear, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(rows: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            if not self._applies_to(rows) or 2 * rows.numel() * layer.out_features < MIN_FLOPS:
                return original(rows, *args, **kwargs)
            flat = rows.reshape(-1, rows.shape[-1])
            size = (flat.shape[0], layer.in_features, layer.out_features)
            if size not in self._parts:
                self._parts[size] = fastest(original, flat)
            if self._parts[size] == 1:
                return original(rows, *args, **kwargs)
            return in_parts(original, flat, self._parts[size]).view(*rows.shape[:-1], layer.out_features)

        return forward

    def _channels_last_forward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(picture: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            if self._applies_to(picture) and picture.ndim == 4:
                picture = picture.contiguous(memory_format=torch.channels_last)
            return original(picture, *args, **kwargs)

        return forward

    def _applies_to(self, given: torch.Tensor) -> bool:
        return (
            not torch.compiler.is_compiling()
            and self._is_region_step()
            and given.device.type == "cpu"
            and not torch.is_grad_enabled()
            and not torch.are_deterministic_algorithms_enabled()
        )


def _is_half_on_cpu(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype in (torch.bfloat16, torch.float16)


def in_parts(layer: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor, num_parts: int) -> torch.Tensor:
    """``layer(rows)`` of rows [P, D] in this many calls."""
    return torch.cat([layer(part) for part in rows.tensor_split(num_parts)])


def fastest(layer: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> int:
    """How many calls `in_parts` is fastest in, by the least of a few times, taken in turns."""
    seconds = dict.fromkeys(PARTS, float("inf"))
    for _ in range(REPEATS):
        for num_parts in PARTS:
            started = time.perf_counter()
            layer(rows) if num_parts == 1 else in_parts(layer, rows, num_parts)
            seconds[num_parts] = min(seconds[num_parts], time.perf_counter() - started)
    return min(seconds, key=lambda num_parts: seconds[num_parts])
