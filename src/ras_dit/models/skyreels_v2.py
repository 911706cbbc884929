"""SkyReels-V2: Wan with a frame rate and, in diffusion forcing, noise levels of their own for every frame."""

from __future__ import annotations

import dataclasses
from typing import Any

from ras_dit.models.plan import Arguments
from ras_dit.models.wan import WAN


def check(transformer: Any, arguments: Arguments) -> str | None:
    """Diffusion forcing steps every frame with a scheduler of its own."""
    if arguments.get("enable_diffusion_forcing"):
        return "SkyReels-V2 diffusion forcing samples every frame with a scheduler of its own: the run was dense."
    return None


SKYREELS_V2 = dataclasses.replace(
    WAN,
    transformer="SkyReelsV2Transformer3DModel",
    family="SkyReels-V2",
    pipelines=("SkyReelsV2Pipeline", "SkyReelsV2ImageToVideoPipeline"),
    gather={**WAN.gather, "": {}},
    check=check,
    caveats=("Diffusion forcing (SkyReelsV2DiffusionForcing pipelines) does not fit.",),
)
