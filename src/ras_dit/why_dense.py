"""Why the runs of a pipeline are dense whatever the plan says: what its scheduler, its transformer or the call is."""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import Any

import torch

from ras_dit.config import RASConfig
from ras_dit.models.plan import Arguments, TokenPlan
from ras_dit.pipeline import transformers_of
from ras_dit.plan import Plan
from ras_dit.schedule import NOT_CARRIED, why_stochastic


def why_dense(
    pipe: Any,
    known: Collection[torch.nn.Module],
    transformer: torch.nn.Module,
    token_plan: TokenPlan,
    arguments: Arguments,
    plan: Plan,
    config: RASConfig,
    num_first: int,
) -> str | None:
    """The reason why a run cannot leave anything out; None if it can.

    Args:
        pipe: the pipeline.
        known: transformers that RAS is on.
        transformer: of the run's first call.
        token_plan: of that.
        arguments: of the run's first call.
        plan: of the run.
        config: of the run.
        num_first: tokens that every step computes (a given first frame).
    """
    if any(other not in known for other in transformers_of(pipe)):
        return "A transformer was replaced after `enable`: the run was dense. Disable and enable again."
    if reason := why_stochastic(pipe.scheduler):
        return f"{reason}: {NOT_CARRIED}"
    reason = token_plan.check(transformer, arguments)
    for each in transformers_of(pipe):
        reason = reason or why_unfit(pipe, each)
        if reason is None and plan.num_region_steps:
            reason = why_frozen(each) or why_split(each) or why_chunked(each)
    if reason is None and num_first and config.rules == "reference":
        reason = "The authors' rules would leave out the given first frame: the whole run was dense."
    return reason


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


def odd_backend(token_plan: TokenPlan, transformer: torch.nn.Module) -> str | None:
    """The attention backend that region steps will refuse; None where all are native. (diffusers keeps the one that is
    chosen in a module's processor, and one for all others.)"""
    dispatch = sys.modules.get("diffusers.models.attention_dispatch")
    active = getattr(getattr(dispatch, "_AttentionBackendRegistry", None), "_active_backend", "native")
    for module, _ in token_plan.attention_modules(transformer).values():
        chosen = getattr(getattr(module, "processor", None), "_attention_backend", "native") or active
        name = str(getattr(chosen, "value", chosen))
        if "native" not in name:
            return name
    return None


def why_split(transformer: Any) -> str | None:
    """Why region steps cannot run where every device has a part of the sequence; None if it is not split."""
    config = getattr(transformer, "_parallel_config", None)
    is_sharded = getattr(transformer, "_cp_shard_fn", None) is not None  # Cosmos 3 leaves it to others
    if getattr(config, "context_parallel_config", None) is None and not is_sharded:
        return None
    return (
        "The sequence is split among devices (context parallelism), which region steps do not know: the whole run was "
        "dense. Take a plan without region steps, such as preset 'balanced'."
    )


def why_chunked(root: torch.nn.Module) -> str | None:
    """Why region steps cannot run where feed-forward layers take tokens in chunks of one size; None if they do not."""
    if all(
        getattr(module, "_chunk_size", None) is None or getattr(module, "_chunk_dim", 0) == 0
        for module in root.modules()
    ):
        return None
    return (
        "Feed-forward layers take the tokens in chunks of one size (enable_forward_chunking with dim=1), which those "
        "of a region step do not fill: the whole run was dense. Chunk along dim=0, or not at all."
    )


def why_frozen(root: Any) -> str | None:
    """Why region steps cannot run in the compiled blocks of a transformer as they are; None if they can.

    Frozen weights (``torch._inductor.config.freezing``) are constants of the compiled code, and so is every tensor
    that PyTorch comes upon by way of a module: cached keys and values would be compiled in.
    """
    config = sys.modules.get("torch._inductor.config")  # nobody can have set it otherwise, and importing it is slow
    if config is None or not config.freezing or torch.is_grad_enabled():
        return None
    if all(getattr(module, "_compiled_call_impl", None) is None for module in root.modules()):
        return None
    return (
        "The transformer's blocks are compiled with frozen weights (torch._inductor.config.freezing), which would make "
        "constants of cached keys and values: the whole run was dense. Set freezing to False and compile them again, "
        "or take a plan without region steps, such as preset 'balanced'."
    )
