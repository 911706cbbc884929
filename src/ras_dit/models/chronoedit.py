"""ChronoEdit: Wan 2.1 with rotary positions that skip from the given frame to the edited one."""

from __future__ import annotations

import dataclasses
from typing import Any

from ras_dit.models.plan import Arguments
from ras_dit.models.wan import WAN


def check(transformer: Any, arguments: Arguments) -> str | None:
    """Temporal reasoning begins with more frames than two, and drops them in the middle of the run."""
    if arguments["hidden_states"].shape[2] > 2:
        return "ChronoEdit with temporal reasoning drops frames in the middle of a run: the run was dense."
    return None


CHRONOEDIT = dataclasses.replace(
    WAN,
    transformer="ChronoEditTransformer3DModel",
    family="ChronoEdit",
    pipelines=("ChronoEditPipeline",),
    check=check,
    caveats=("With temporal reasoning the run is dense.",),
)
