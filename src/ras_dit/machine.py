"""The machine that a result depends on: its GPU, or its processor."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

UNITS: tuple[str, ...] = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")
"""Units for matrix products, as Linux names them, the best first."""


def processor() -> str:
    """What the processor calls itself, with the widest of its units for matrix products that PyTorch makes use of."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    if not names:
        return platform.processor() or platform.machine()
    known = {word for line in lines if line.startswith("flags") for word in line.split()}
    units = [unit for unit in UNITS if unit in known]
    units = [unit for unit in units if unit.endswith("bf16")] or units[:1]
    return names[0] + (f" ({', '.join(units)})" if units else "")


def machine_name(device: torch.device) -> str:
    """The GPU that a device is; of any other device, the processor."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
