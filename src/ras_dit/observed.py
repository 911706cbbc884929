"""A diffusers scheduler, observed: when a run begins, what every step is given."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from ras_dit.schedule import why_stochastic_step
from ras_dit.seams import PatchedMethod, PlainCopies

Observer = Callable[[torch.Tensor, torch.Tensor], None]
Adjuster = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def observing(
    step: Callable[..., Any],
    observe: Observer,
    adjust: Adjuster | None = None,
    refuse: Callable[[str], None] | None = None,
) -> Callable[..., Any]:
    """A scheduler's ``step`` that hands its ``model_output`` and ``sample`` on afterwards, whatever their order.

    Args:
        step: of a scheduler.
        observe: called after it.
        adjust: called before it; the step gets what it returns in place of ``model_output``.
        refuse: called before it with the reason why noise cannot be carried from this step to the next, if there is
            one.
    """
    signature = inspect.signature(step)

    def observed_step(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        noise, sample = given.arguments["model_output"], given.arguments["sample"]
        if refuse is not None and (reason := why_stochastic_step(given.arguments)):
            refuse(reason)
        if adjust is not None and (adjusted := adjust(noise, sample)) is not noise:
            given.arguments["model_output"] = noise = adjusted
            args, kwargs = given.args, given.kwargs
        result = step(*args, **kwargs)
        observe(noise, sample)
        return result

    return observed_step


class ObservedScheduler:
    """A scheduler whose runs and steps are observed, until `release`.

    Args:
        scheduler: the instance.
        begin: called after its ``set_timesteps``.
        observe, adjust, refuse: see `observing`.
    """

    def __init__(
        self,
        scheduler: Any,
        begin: Callable[[], None],
        observe: Observer,
        adjust: Adjuster,
        refuse: Callable[[str], None],
    ) -> None:
        def beginning(original: Callable[..., Any]) -> Callable[..., Any]:
            def set_timesteps(*args: Any, **kwargs: Any) -> Any:
                result = original(*args, **kwargs)
                begin()
                return result

            return set_timesteps

        patches = [
            PatchedMethod(scheduler, "set_timesteps", beginning),
            PatchedMethod(scheduler, "step", lambda step: observing(step, observe, adjust, refuse)),
        ]
        self._patches: list[PatchedMethod | PlainCopies] = [*patches, PlainCopies(scheduler, patches)]

    def release(self) -> None:
        """The scheduler is as it was."""
        for patch in self._patches:
            patch.release()
