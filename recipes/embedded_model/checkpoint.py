"""What all trainers of the recipe share: atomic files, clean interruption, a log of numbers."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


def save_atomically(state: Any, path: Path) -> None:
    """Write `state` with torch.save so that `path` always holds a whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".part")
    torch.save(state, scratch)
    os.replace(scratch, path)


def write_json(data: Any, path: Path) -> None:
    """Write `data` as indented JSON so that `path` always holds a whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".part")
    scratch.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    os.replace(scratch, path)


def mixed_precision(device: str) -> torch.autocast:
    """Return autocast to bfloat16, off on a CPU without instructions for it, where it would be slower."""
    is_fast = device != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=is_fast)


class Interruption:
    """Tells a training loop that Ctrl-C or SIGTERM arrived, so that it can save and stop."""

    def __init__(self) -> None:
        self.is_requested = False

    def request(self, *_: Any) -> None:
        """Note the signal."""
        self.is_requested = True


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Turn SIGINT and SIGTERM into a flag for the length of the block; the old handlers come back after it."""
    interruption = Interruption()
    previous = {sig: signal.signal(sig, interruption.request) for sig in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for sig, handler in previous.items():
            signal.signal(sig, handler)


class Stopwatch:
    """Seconds of work done, over all resumed runs; a long pause (SIGSTOP) does not count.

    Args:
        elapsed: seconds done in earlier runs.
    """

    LONGEST_STEP = 20.0  # seconds; a longer gap between two steps was a pause

    def __init__(self, elapsed: float = 0.0) -> None:
        self.elapsed = elapsed
        self._last = time.monotonic()

    def tick(self) -> float:
        """Count the time since the last tick and return the total."""
        now = time.monotonic()
        self.elapsed += min(now - self._last, self.LONGEST_STEP)
        self._last = now
        return self.elapsed


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the parameters of `average` towards those of `model`: a <- decay * a + (1 - decay) * m."""
    torch._foreach_lerp_(list(average.parameters()), [p.detach() for p in model.parameters()], 1 - decay)


@dataclass(frozen=True)
class Ranks:
    """The processes that train together; one alone unless started by torchrun.

    On a CPU two processes of one thread each train faster than one of two threads, and other work on the
    machine slows them down far less: they wait for each other once a step, not once an operation.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls) -> Ranks:
        """Join the group that torchrun describes in the environment, if any."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        if not torch.cuda.is_available():
            torch.set_num_threads(1)
        return cls(dist.get_rank(), count)

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def average_gradients(self, model: nn.Module) -> None:
        """Replace every gradient by its mean over the processes."""
        if self.count == 1:
            return
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.count
        pieces = flat.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(pieces, gradients, strict=True)])

    def agree(self, value: float) -> float:
        """Return the largest of the processes' values, so that all stop at the same step."""
        if self.count == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64)
        if torch.cuda.is_available():
            shared = shared.cuda()
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return float(shared.item())

    def wait(self) -> None:
        """Wait for the other processes."""
        if self.count > 1:
            dist.barrier()
