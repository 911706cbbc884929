"""The time of selection, scoring and forecast, as a share of a dense step."""

from __future__ import annotations

import statistics
from typing import Any

from ras_dit.bench.inside import FORECAST, PARTS, SELECTION, PartTimer, around_parts
from ras_dit.bench.loops import run_loop, short_call, short_config
from ras_dit.config import RASConfig

NUM_STEPS = 9


def overhead(pipe: Any, call: dict[str, Any], config: RASConfig, dense_step: float) -> dict[str, Any]:
    """What RAS adds to a region step.

    Args:
        pipe: RAS is not enabled on it.
        call: arguments.
        config: has region steps.
        dense_step: seconds of a dense evaluation without RAS.

    Returns:
        Per part ``<part>_ms`` of a region step (median), and ``share``: selection and forecast together over the dense
        step.
    """
    from ras_dit.engine import accelerate

    timer, short = PartTimer(pipe), short_call(call, NUM_STEPS)
    with accelerate(pipe, short_config(config)) as handle:
        run_loop(pipe, short_call(call))
        with around_parts(handle, timer):
            run_loop(pipe, short)
        kinds = [step.kind for step in handle.trace.steps]
    seconds = timer.seconds()
    region = [index for index, kind in enumerate(kinds[:-1]) if kind == "region"]  # the last one selects nothing
    medians = {part: statistics.median(seconds[part].get(index, 0.0) for index in region) for part in PARTS}
    share = (medians[SELECTION] + medians[FORECAST]) / dense_step
    return {**{f"{part}_ms": round(1e3 * medians[part], 4) for part in PARTS}, "share": round(share, 5)}
