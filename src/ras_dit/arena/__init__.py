"""The arena: every method from the same noise, and what each makes of a given compute.

`methods` says what can take part and puts it on a pipeline, `rivals` and `ours` list what does, `suites` has them in
ready-made sets, `run` paints (resumably) and keeps what was painted with what (`origins`), `metrics` compares pictures,
`perceptual` does with networks by others (`networks`), `distances` compares sets of pictures, `measure` has all of it
for a method, `report` makes one JSON, a table and a plot of it.
"""

from __future__ import annotations

from ras_dit.arena.methods import AdamsBashforth2Scheduler, Method, StepCache, applied
from ras_dit.arena.report import report
from ras_dit.arena.run import Arena, Scene
from ras_dit.arena.suites import SUITES, chosen, named_for, suite, within

__all__ = [
    "SUITES",
    "AdamsBashforth2Scheduler",
    "Arena",
    "Method",
    "Scene",
    "StepCache",
    "applied",
    "chosen",
    "named_for",
    "report",
    "suite",
    "within",
]
