"""Reading a diffusers pipeline: where it runs, and what it samples with."""

from __future__ import annotations

from typing import Any

import torch


def device_of(pipe: Any) -> torch.device:
    """Where a pipeline runs: with offloading that is not where its weights are."""
    device = getattr(pipe, "_execution_device", None)
    return device if isinstance(device, torch.device) else next(pipe.transformer.parameters()).device


def why_unfit(pipe: Any, transformer: torch.nn.Module) -> str | None:
    """Why no step of a pipeline can leave tokens out, as it guides, or as its transformer runs; None if they can."""
    if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in transformer.parameters()):
        return "Gradients are recorded (use torch.no_grad()): the whole run was dense."
    places = (getattr(transformer, "hf_device_map", None) or {}).values()
    if len(set(places) - {"cpu", "disk"}) > 1:  # what is offloaded there runs where the rest does
        return "The transformer's layers lie on several devices (device_map): the whole run was dense."
    if "SmoothedEnergyGuidance" in type(getattr(pipe, "guider", None)).__name__:
        return "SmoothedEnergyGuidance blurs queries as if all tokens were there: the whole run was dense."
    return None


def transformers_of(pipe: Any) -> list[torch.nn.Module]:
    """The transformers that a pipeline samples with (Wan 2.2 has a second one for low noise)."""
    second = getattr(pipe, "transformer_2", None)
    return [pipe.transformer] if second is None else [pipe.transformer, second]
