"""Reading a diffusers pipeline and its calls: where it runs, what it samples with, what a transformer returns."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch


def device_of(pipe: Any) -> torch.device:
    """Where a pipeline runs: with offloading that is not where its weights are."""
    device = getattr(pipe, "_execution_device", None)
    return device if isinstance(device, torch.device) else next(pipe.transformer.parameters()).device


def weakly(pipe: Any) -> Callable[[], Any]:
    """Gives a pipeline for as long as somebody else holds it (not at all, if its class has no weak references)."""
    try:
        return weakref.ref(pipe)
    except TypeError:
        return lambda: None


def records_gradients(arguments: Mapping[str, Any]) -> bool:
    """Whether a transformer call would record gradients of what it is given."""
    if not torch.is_grad_enabled():
        return False
    given = [part for value in arguments.values() for part in (value if isinstance(value, (list, tuple)) else [value])]
    return any(isinstance(part, torch.Tensor) and part.requires_grad for part in given)


def pass_of(arguments: Mapping[str, Any]) -> tuple[tuple[str, object], ...]:
    """What tells one guidance pass from another with as many rows: switches and lists of blocks among the arguments
    (LTX-2 isolates modalities in one pass and leaves out attention of some blocks in another)."""
    return tuple(
        (name, tuple(value) if isinstance(value, (list, tuple)) else value)
        for name, value in sorted(arguments.items())
        if (isinstance(value, bool) and name != "return_dict")
        or (isinstance(value, (list, tuple)) and all(type(one) is int for one in value))
    )


def transformers_of(pipe: Any) -> list[torch.nn.Module]:
    """The transformers that a pipeline samples with (Wan 2.2 has a second one for low noise)."""
    first, second = getattr(pipe, "transformer", None), getattr(pipe, "transformer_2", None)
    return [transformer for transformer in (first, second) if transformer is not None]


def has_another_transformer(pipe: Any) -> bool:
    """Whether a pipeline has one besides those, for some of its calls (MiniMax-H3, with references)."""
    return getattr(pipe, "transformer_ref", None) is not None


def moves_layers(transformer: torch.nn.Module) -> bool:
    """Whether layers of a transformer are moved to the device one by one, or in groups, as they are called (sequential
    and group offloading)."""
    for module in transformer.modules():
        groups = getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
        hook = getattr(module, "_hf_hook", None)  # of accelerate: one, or several in one
        is_moved = any(getattr(each, "offload", False) for each in getattr(hook, "hooks", [hook]))
        if "group_offloading" in groups or (is_moved and module is not transformer):
            return True
    return False


def is_on(scale: Any) -> tuple[bool, ...]:
    """Whether a ControlNet or an IP-Adapter of this scale does anything: one answer for each scale of a list."""
    scales = scale if isinstance(scale, (list, tuple)) else [scale]
    return tuple(not isinstance(one, (int, float)) or one != 0 for one in scales)


def controlnet_of(pipe: Any) -> torch.nn.Module | None:
    """The ControlNet that a pipeline calls in every step; None without one, or where it is compiled as a whole."""
    controlnet = getattr(pipe, "controlnet", None)
    is_compiled = type(controlnet).__name__ == "OptimizedModule" or getattr(controlnet, "_compiled_call_impl", None)
    return controlnet if isinstance(controlnet, torch.nn.Module) and not is_compiled else None


def takes_control(pipe: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether a ControlNet has a say in a transformer call: the pipeline's own, or that of another pipeline which
    shares its transformer."""
    has_own = getattr(pipe, "controlnet", None) is not None
    given = (value for name, value in arguments.items() if "controlnet" in name)
    return has_own or any(isinstance(value, (torch.Tensor, list, tuple, dict)) for value in given)
