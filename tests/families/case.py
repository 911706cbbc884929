"""One pipeline class of one family: how to build it tiny, and how to call it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


def normals(seed: int = 1) -> Callable[..., torch.Tensor]:
    """A function that draws normal tensors of a given shape, the same every time."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


def first_output(output: Any) -> torch.Tensor:
    """The latents of a pipeline's output (``images`` or ``frames``)."""
    return output[0]


@dataclass(frozen=True)
class FamilyCase:
    """A case of the generic suite.

    Attributes:
        name: test id.
        build: gives a fresh real pipeline with tiny random components, every transformer parameter re-drawn.
        call: ``call(batch=1, height=4, width=6)`` gives the arguments of a call that returns latents; height and width
            in tokens of the transformer (per frame).
        num_calls: transformer calls per denoising evaluation (2 where guidance makes two).
        output: takes the latents out of what the pipeline returns.
        max_batch: largest batch the pipeline takes.
        flops_tolerance: relative difference between the cost model and torch's counter that is accepted.
        rounding: how far a region step on an unchanged input may be from the dense one. 0, but for experts: each
            multiplies as many rows as are sent to it, and a matrix library may round differently for other row counts
            (seen on one processor, 1.1e-6; 0 on another).
        sizes: batch, height and width of the calls.
        samples_per_image: rows that the scheduler sees per image (DiT hands it both halves of guidance).
        reads_sigmas: the pipeline takes the noise level from the scheduler's sigmas, not from its timesteps.
        notes: patterns of the notes that a run is expected to leave.
    """

    name: str
    build: Callable[[], Any]
    call: Callable[..., dict[str, Any]]
    num_calls: int = 1
    output: Callable[[Any], torch.Tensor] = first_output
    max_batch: int = 2
    flops_tolerance: float = 0.03
    rounding: float = 0.0
    sizes: tuple[tuple[int, int, int], ...] = ((1, 6, 8), (2, 8, 6))
    samples_per_image: int = 1
    notes: tuple[str, ...] = ()
    reads_sigmas: bool = False
