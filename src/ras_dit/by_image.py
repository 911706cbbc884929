"""A region step of several images, one image after the other.

Where a transformer's position tables have no batch dimension, one call can compute one set of tokens. So that every
image of a batch has a set of its own all the same, a region step calls it once per image, with the rows of the batch
that belong to that image (its guidance rows). Each attends to, and writes into, its part of the keys and values.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ras_dit.calls import Call
from ras_dit.config import RASConfig
from ras_dit.models import TokenPlan
from ras_dit.models.plan import Arguments
from ras_dit.pipeline import moves_layers
from ras_dit.plan import Plan
from ras_dit.tokens import TokenSeams


def own_forward(
    seams: TokenSeams,
    enter: Callable[[Call], None],
    skipped: Callable[[Call, bool], Any],
    original: Callable[..., Any],
) -> Callable[..., Any]:
    """A transformer's forward that is not run in skipped steps, and run once per image where every image has a set of
    its own that one call could not compute.

    Args:
        seams: of the transformer.
        enter: makes a call the one under way.
        skipped: what the transformer returns in a skipped step: (call, return_dict).
        original: its forward.
    """

    def forward(*args: Any, **kwargs: Any) -> Any:
        call = seams.current()
        if call is not None and call.kind == "skip":
            return skipped(call, kwargs.get("return_dict", True))
        if call is not None and call.num_parts > 1:
            return computed_by_image(call, seams, enter, original, args, kwargs)
        return original(*args, **kwargs)

    return forward


def computed_by_image(
    call: Call,
    seams: TokenSeams,
    enter: Callable[[Call], None],
    forward: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """What a transformer returns in a region step of several images.

    Args:
        call: of all images.
        seams: of the transformer.
        enter: makes a call the one under way.
        forward: the transformer's, as it was.
        args, kwargs: as the pipeline gave them.
    """
    outputs = []
    for image in range(call.num_parts):
        part = call.of_image(image)
        enter(part)
        seams.begin(part)
        own_args, own_kwargs = seams.gather_root(args, kwargs, functools.partial(of_image, call, image))
        outputs.append(forward(*own_args, **own_kwargs))
    enter(call)
    return joined(outputs)


def of_image(call: Call, image: int, value: Any) -> Any:
    """The rows of one image in an argument of the transformer.

    Args:
        call: of all images.
        image: its number.
        value: a tensor whose first dimension is the batch; a list or tuple without tensors that has one entry per row
            of it (sizes, lengths), whatever those are; or lists, tuples and dicts of such tensors. Anything else
            belongs to all images.
    """
    num_rows, rows = call.num_batch_rows, call.rows_of(image)
    if isinstance(value, torch.Tensor):
        return value[rows].contiguous() if value.ndim and value.shape[0] == num_rows else value
    if type(value) in (list, tuple):
        if not _has_tensors(value):
            return value[rows] if len(value) == num_rows else value
        return type(value)(of_image(call, image, part) if _has_tensors(part) else part for part in value)
    if type(value) is dict:
        return {key: of_image(call, image, part) for key, part in value.items()}
    return value


def _has_tensors(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return isinstance(value, torch.Tensor) or any(_has_tensors(part) for part in parts)


def joined(outputs: Sequence[Any]) -> Any:
    """What calls for one image each returned, as one call for all would have: row r of image i of B is row r * B + i.

    Args:
        outputs: tensors [rows of an image, ...], lists with an entry per row, or tuples and diffusers' outputs of such.
    """
    first = outputs[0]
    if isinstance(first, torch.Tensor):
        return torch.stack(list(outputs), dim=1).flatten(0, 1)
    if isinstance(first, list):
        return [entry for row in zip(*outputs, strict=True) for entry in row]
    if isinstance(first, tuple):
        return type(first)(joined(parts) for parts in zip(*outputs, strict=True))
    if isinstance(first, dict):  # an output of diffusers is one, made of its fields
        return type(first)(**{name: joined([output[name] for output in outputs]) for name in first})
    return first


SLOW = 0.9
"""A predicted speed-up below this share of what one call for all images would have is worth a word."""


def why_slow(plan: Plan, costed: Callable[..., Plan], num_parts: int) -> str | None:
    """What images one after the other cost a run, where that is much.

    Args:
        plan: of the run, with its cost.
        costed: puts its cost to a plan: (plan, images one after the other).
        num_parts: images one after the other in the run.
    """
    if num_parts == 1:
        return None
    ours, together = plan.predicted_speedup, costed(plan, 1).predicted_speedup
    if ours is None or together is None or ours >= SLOW * together:
        return None
    return (
        f"Region steps computed the {num_parts} images one after the other, so that each has its own active set: "
        f"predicted speed-up {ours:.2f}x. With shared_active_set=True, one set for all, it is {together:.2f}x."
    )


def count_parts(token_plan: TokenPlan, plan: Plan, latents: torch.Tensor, most_repeats: int) -> int:
    """Images that the region steps of a run compute one after the other, if every one has a set of its own.

    Args:
        token_plan: of the transformer.
        plan: of the run.
        latents: of the transformer's first call [R, ...].
        most_repeats: guidance rows of an image, at most.
    """
    if token_plan.has_batched_positions or not plan.num_region_steps or len(latents) == 1:
        return 1
    return count_images(latents, most_repeats)


def count_images(latents: torch.Tensor, most_repeats: int) -> int:
    """Images in a transformer's batch, as far as its latents tell: pipelines that guide in one call give it those of
    every image once per guidance row.

    Args:
        latents: [R, ...].
        most_repeats: guidance rows of an image, at most.
    """
    for num_repeats in range(most_repeats, 1, -1):
        count, rest = divmod(len(latents), num_repeats)
        if count and not rest and all(torch.equal(latents[:count], part) for part in latents.split(count)):
            return count
    return len(latents)


def has_own_sets(
    token_plan: TokenPlan, config: RASConfig, transformer: torch.nn.Module, arguments: Arguments | None = None
) -> bool:
    """Whether every image of a batch has an active set of its own; arguments as for `can_split`."""
    if config.shared_active_set:
        return False
    return token_plan.has_batched_positions or can_split(token_plan, transformer, arguments)


def can_split(token_plan: TokenPlan, transformer: torch.nn.Module, arguments: Arguments | None = None) -> bool:
    """Whether the images of a batch may go through a transformer one after the other.

    Args:
        token_plan: of the transformer.
        transformer: layers that are offloaded one by one would be moved once more for every image.
        arguments: of a call; None where that is still to come.
    """
    if token_plan.can_split is None or moves_layers(transformer):
        return False
    return arguments is None or token_plan.can_split(arguments)
