"""How the transformer's blocks run: as they are, or compiled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from ras_dit.bench.loops import run_loop, short_call
from ras_dit.config import RASConfig

if TYPE_CHECKING:
    import torch

MODES = ("eager", "compiled", "reduce-overhead")
RECOMPILE_LIMIT = 64
"""Graphs per block, far more than the few kinds of steps need."""


def blocks_of(pipe: Any) -> list[Any]:
    """The repeated blocks: what holds an attention module that the token plan names."""
    from ras_dit.models import token_plan_of

    transformer = pipe.transformer
    names = {name.rpartition(".")[0] for name in token_plan_of(transformer).attention_modules(transformer)}
    return [transformer.get_submodule(name) for name in sorted(names)]


def config_in(mode: str, config: RASConfig) -> RASConfig:
    """A config as it runs in a mode: CUDA graphs read keys and values at addresses that stay."""
    return config.replace(static_memory=True) if mode == "reduce-overhead" else config


@contextmanager
def in_mode(pipe: Any, mode: str, backend: str = "inductor") -> Iterator[None]:
    """Run a pipeline's blocks in a mode; they are as before afterwards.

    Args:
        pipe: its transformer's blocks are compiled one by one, whole graphs only. The first shape of a block gets a
            graph of its own, later ones may share one (PyTorch's default): see `settle`. With CUDA graphs every one has
            its own.
        mode: one of `MODES`. With CUDA graphs every transformer call, with RAS or without, is announced to PyTorch:
            else every block would end what the one before it returned.
        backend: of torch.compile. ``reduce-overhead`` is one of inductor's own modes.

    Raises:
        ValueError: an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"mode: got {mode!r}; allowed: {', '.join(MODES)}.")
    if mode == "eager":
        yield
        return
    import torch

    has_graphs = mode == "reduce-overhead"
    limit, blocks = torch._dynamo.config.recompile_limit, blocks_of(pipe)
    options: dict[str, Any] = {"mode": "reduce-overhead"} if has_graphs else {"backend": backend}
    torch.compiler.reset()
    torch._dynamo.config.recompile_limit = max(limit, RECOMPILE_LIMIT)
    announced = pipe.transformer.register_forward_pre_hook(_announce) if has_graphs else None
    try:
        for block in blocks:
            block.compile(fullgraph=True, **options)
        with _whole_graphs() if has_graphs else nullcontext():
            yield
    finally:
        if announced is not None:
            announced.remove()
        for block in blocks:
            block._compiled_call_impl = None
        torch._dynamo.config.recompile_limit = limit
        torch.compiler.reset()


@contextmanager
def _whole_graphs() -> Iterator[None]:
    """CUDA graphs of whole blocks or none: what PyTorch cannot record is counted (`num_without_graphs`), and not left
    out of a graph that is cut in parts. Every shape has a graph of its own, as the dense baseline has."""
    from torch._dynamo import config as dynamo
    from torch._inductor import config

    with config.patch(graph_partition=False), dynamo.patch(automatic_dynamic_shapes=False):
        yield


def settle(pipe: Any, call: dict[str, Any]) -> None:
    """Compile dense steps first, with and without RAS: the baseline gets graphs of its very shape.

    Args:
        pipe: compiled just now.
        call: arguments.
    """
    from ras_dit.engine import accelerate

    run_loop(pipe, short_call(call, 2))
    with accelerate(pipe, RASConfig(sample_ratio=1.0)):
        run_loop(pipe, short_call(call, 2))


def num_without_graphs() -> int:
    """How often PyTorch compiled something for CUDA graphs, and then ran it without, in this process."""
    from torch._dynamo.utils import counters

    return int(counters["inductor"]["cudagraph_skips"])


def num_recorded(device: torch.device) -> int:
    """CUDA graphs that were recorded in this process. Asking counts as one, for it takes a number itself."""
    if device.type != "cuda":
        return 0
    import torch
    from torch._inductor.cudagraph_trees import get_manager

    index = torch.cuda.current_device() if device.index is None else device.index
    manager = get_manager(index, create_if_none_exists=False)
    return 0 if manager is None else int(manager.new_graph_id().id)


def _announce(*_: Any) -> None:
    import torch

    torch.compiler.cudagraph_mark_step_begin()
