"""Versions that a result depends on."""

from __future__ import annotations


def versions() -> dict[str, str]:
    """Versions of ras-dit, diffusers and torch; the latter with its build, which the package's metadata may lack."""
    import diffusers
    import torch

    import ras_dit

    return {"ras_dit": ras_dit.__version__, "diffusers": diffusers.__version__, "torch": str(torch.__version__)}
