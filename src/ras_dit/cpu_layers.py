"""Single layers on a CPU, as a region step runs them fastest; dense steps are left as they are.

Linear layers take their rows in as many calls as are fastest: oneDNN cuts rows into blocks for the threads by their
number, and for some numbers leaves threads without work, so that two calls of half the rows are faster
(docs/performance.md, ``python -m benchmarks.cpu_linear``). Patch embeddings take pictures with channels last, which
oneDNN need not reorder and which come out as rows of tokens.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ras_dit.seams import PatchedMethod

MIN_FLOPS = 2.5e8
"""Layers below are not split: a call of so little work takes as long as its fixed cost."""

PARTS = (1, 2, 4)
REPEATS = 3
NEARLY = 1.15
"""Times within this factor count as alike."""


LayerTimings = dict[tuple[torch.dtype, int, int, int], int]
"""Type, rows, inputs and outputs of a linear layer -> how many calls are fastest."""


@dataclass
class SplitLayer:
    """One linear layer, and the number of calls that its rows take in the step under way. It may be traced into a
    compiled block, which reads that number alone."""

    module: nn.Linear
    stream: str
    parts: int = 1

    def wrap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """A forward that hands the rows to the layer's own in parts."""

        def forward(rows: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            if self.parts == 1 or args or kwargs:
                return original(rows, *args, **kwargs)
            flat = rows.reshape(-1, rows.shape[-1])
            return in_parts(original, flat, self.parts).view(*rows.shape[:-1], self.module.out_features)

        return forward


class CPULayers:
    """The layers of one transformer that run differently in region steps.

    Every size (rows, inputs, outputs) is timed once, before the first region step that has it. Chunks of rows go
    through the module's own forward: adapters, hooks and quantised weights are where they were. Rows do not depend on
    each other, but their rounding may depend on their number (that of a picture on where its channels lie), so nothing
    is changed under ``torch.use_deterministic_algorithms(True)``.

    Args:
        root: the transformer. Only its layers on a CPU and in 16-bit types are touched: plain ``nn.Linear``, and patch
            embeddings (``nn.Conv2d`` whose kernel is its stride).
        stream_of: the name of a layer -> what it works on, one of those in `TokenPlan.linears`.
        timings: what is known already, to be added to.
    """

    def __init__(self, root: nn.Module, stream_of: Callable[[str], str], timings: LayerTimings | None = None) -> None:
        self._fastest = {} if timings is None else timings
        self._splits: list[SplitLayer] = []
        self._patches: list[PatchedMethod] = []
        self._is_channels_last = False
        for name, module in root.named_modules():
            if type(module) is nn.Linear and _is_half_on_cpu(module.weight):
                self._splits.append(SplitLayer(module, stream_of(name)))
                self._patches.append(PatchedMethod(module, "forward", self._splits[-1].wrap))
            elif _is_patch_embedding(module):
                self._patches.append(PatchedMethod(module, "forward", self._channels_last_forward))

    @property
    def parts(self) -> dict[tuple[int, int, int], int]:
        """Calls by (rows, inputs, outputs), as measured so far."""
        return {size[1:]: count for size, count in self._fastest.items()}

    def aim(self, num_rows: Mapping[str, int], device: torch.device) -> None:
        """A region step begins.

        Args:
            num_rows: rows of its streams, all rows of the batch together; layers of other streams stay as they are.
            device: of its latents. Weights that are offloaded lie on the CPU until their layer is called.
        """
        if device.type != "cpu" or torch.are_deterministic_algorithms_enabled() or torch.is_grad_enabled():
            return
        self._is_channels_last = True
        for split in self._splits:
            split.parts = self._parts_of(split.module, num_rows.get(split.stream, 0))

    def clear(self) -> None:
        """It is over."""
        self._is_channels_last = False
        for split in self._splits:
            split.parts = 1

    def _parts_of(self, layer: nn.Linear, num_rows: int) -> int:
        size = (layer.weight.dtype, num_rows, layer.in_features, layer.out_features)
        is_small = 2 * num_rows * layer.in_features * layer.out_features < MIN_FLOPS
        if (
            not num_rows or is_small or not _is_half_on_cpu(layer.weight)
        ):  # a pipeline may be moved after RAS was enabled on it
            return 1
        if size not in self._fastest:
            rows = torch.ones(num_rows, layer.in_features, dtype=layer.weight.dtype)
            self._fastest[size] = fastest(functools.partial(nn.Linear.forward, layer), rows)
        return self._fastest[size]

    def ensure(self) -> None:
        """Put back what somebody else took out (accelerate's offload does)."""
        for patch in self._patches:
            patch.ensure()

    def close(self) -> None:
        """Leave the layers as they were."""
        for patch in self._patches:
            patch.release()
        self._patches, self._splits = [], []

    def _channels_last_forward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(picture: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            if self._is_channels_last and picture.ndim == 4:
                picture = picture.contiguous(memory_format=torch.channels_last)
            return original(picture, *args, **kwargs)

        return forward


def _is_half_on_cpu(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype in (torch.bfloat16, torch.float16)


def _is_patch_embedding(module: nn.Module) -> bool:
    return type(module) is nn.Conv2d and module.kernel_size == module.stride and _is_half_on_cpu(module.weight)


def in_parts(layer: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor, num_parts: int) -> torch.Tensor:
    """``layer(rows)`` of rows [P, D] in this many calls."""
    return torch.cat([layer(part) for part in rows.tensor_split(num_parts)])


def fastest(layer: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> int:
    """How many calls `in_parts` should make: the fewest that are nearly as fast as the best.

    By the least of a few times, taken in turns. Where two numbers are about as fast, the choice must not fall on one
    today and on the other tomorrow: each is a graph of its own where blocks are compiled.
    """
    seconds = dict.fromkeys(PARTS, float("inf"))
    for _ in range(REPEATS):
        for num_parts in PARTS:
            started = time.perf_counter()
            layer(rows) if num_parts == 1 else in_parts(layer, rows, num_parts)
            seconds[num_parts] = min(seconds[num_parts], time.perf_counter() - started)
    return next(parts for parts in PARTS if seconds[parts] <= NEARLY * min(seconds.values()))
