"""How the transformer's blocks run: as they are, or compiled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

MODES = ("eager", "compiled", "reduce-overhead")
RECOMPILE_LIMIT = 64
"""Graphs per block: dense idle, dense capturing, and one per number of active tokens and size of the picture."""


def blocks_of(pipe: Any) -> list[Any]:
    """The repeated blocks: what holds an attention module that the token plan names."""
    from ras_dit.models import token_plan_of

    transformer = pipe.transformer
    names = {name.rpartition(".")[0] for name in token_plan_of(transformer).attention_modules(transformer)}
    return [transformer.get_submodule(name) for name in sorted(names)]


@contextmanager
def in_mode(pipe: Any, mode: str, backend: str = "inductor") -> Iterator[None]:
    """Run a pipeline's blocks in a mode; they are as before afterwards.

    Args:
        pipe: its transformer's blocks are compiled one by one, whole graphs only, a graph for every shape.
        mode: one of `MODES`.
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

    limit, blocks = torch._dynamo.config.recompile_limit, blocks_of(pipe)
    options: dict[str, Any] = {"mode": "reduce-overhead"} if mode == "reduce-overhead" else {"backend": backend}
    torch.compiler.reset()
    torch._dynamo.config.recompile_limit = max(limit, RECOMPILE_LIMIT)
    try:
        for block in blocks:
            block.compile(fullgraph=True, dynamic=False, **options)
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None
        torch._dynamo.config.recompile_limit = limit
        torch.compiler.reset()
