"""What tests look at in a pipeline, and what they put around one for a while."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput

from ras_dit.pipeline import transformers_of
from ras_dit.seams import PatchedMethod


def state_of(owner: Any) -> list[Any]:
    """The attributes of an instance; of a module those of all modules in it, their hooks and what they run."""
    if not isinstance(owner, torch.nn.Module):
        return sorted(vars(owner))
    return [
        (
            name,
            sorted(vars(module)),
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            id(getattr(module.forward, "__func__", module.forward)),
        )
        for name, module in owner.named_modules()
    ]


def fingerprint(pipe: Any) -> list[Any]:
    """The state of the transformers, of the scheduler and of the pipeline itself."""
    return [state_of(owner) for owner in (*transformers_of(pipe), pipe.scheduler, pipe)]


@contextmanager
def moving_by(pipe: Any, factor: float, reads_sigmas: bool = False) -> Iterator[None]:
    """A scheduler whose steps all have the same timestep and multiply the sample by a factor; 1 keeps it as it is."""

    def even_timesteps(original: Any) -> Any:
        def set_timesteps(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            middle = pipe.scheduler.timesteps[len(pipe.scheduler.timesteps) // 2].clone()
            pipe.scheduler.timesteps[:] = middle
            if reads_sigmas:
                pipe.scheduler.sigmas[:] = pipe.scheduler.sigmas[len(pipe.scheduler.timesteps) // 2].clone()
            return result

        return set_timesteps

    def scaled(original: Any) -> Any:
        signature = inspect.signature(original)

        def step(*args: Any, **kwargs: Any) -> Any:
            sample = signature.bind(*args, **kwargs).arguments["sample"] * factor
            if "old_pred_original_sample" in signature.parameters:
                return sample, None
            return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=sample)

        return step

    patches = [
        PatchedMethod(pipe.scheduler, "set_timesteps", even_timesteps),
        PatchedMethod(pipe.scheduler, "step", scaled),
    ]
    try:
        yield
    finally:
        for patch in patches:
            patch.release()


@contextmanager
def recorded(pipe: Any) -> Iterator[list[torch.Tensor]]:
    """The noise of every transformer call. Enter it after RAS is enabled, so that it sees what the pipeline gets."""
    seen: list[torch.Tensor] = []
    hooks = [
        transformer.register_forward_hook(lambda module, args, output: seen.append(_noise_of(output)))
        for transformer in transformers_of(pipe)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _noise_of(output: Any) -> torch.Tensor:
    """A copy of what a transformer returned."""
    sample = output[0] if isinstance(output, tuple) else output.sample
    return (torch.stack(sample) if isinstance(sample, list) else sample).clone()


@contextmanager
def compiling(limit: int = 32) -> Iterator[None]:
    """Compile from nothing, with room for many graphs of a block, and leave nothing compiled.

    The README advises a limit of 32: every kind of step is a graph of its own.
    """
    before = torch._dynamo.config.recompile_limit
    torch.compiler.reset()
    torch._dynamo.config.recompile_limit = limit
    try:
        yield
    finally:
        torch._dynamo.config.recompile_limit = before
        torch.compiler.reset()
