"""What a run did, as users read it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ras_dit.by_image import why_slow
from ras_dit.gain import is_small, why_small
from ras_dit.plan import Plan
from ras_dit.remarks import why_short
from ras_dit.session import Session
from ras_dit.trace import Trace


@dataclass(frozen=True)
class Summary:
    """What the latest generation did. ``print`` shows it.

    Attributes:
        num_steps: transformer evaluations that ran.
        num_dense: those over all tokens.
        token_steps: T, the sum of computed / all tokens.
        speedup_limit: dense FLOPs over those of the steps as they ran (before anything ran: as planned), of the
            transformer.
        predicted_speedup: predicted dense time over that of the steps as they ran, fixed costs counted.
        measured_speedup: dense time over spent time of the transformer, from the run's own dense steps.
        notes: why anything ran otherwise than planned.
        advice: what to do about a run that gains little or nothing, or is too short; what the speed-ups leave out.
    """

    num_steps: int
    num_dense: int
    token_steps: float
    speedup_limit: float | None
    predicted_speedup: float | None
    measured_speedup: float | None
    notes: tuple[str, ...]
    advice: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.num_steps:
            head = "RAS: the latest run was not followed." if self.notes else "RAS: nothing has run yet."
            return "\n".join([head, *(f"Note: {note}" for note in self.notes)])
        lines = [
            f"RAS: {self.num_steps} evaluations, {self.num_dense} dense; T = {self.token_steps:.2f} token-steps "
            f"instead of {self.num_steps}."
        ]
        if self.speedup_limit is not None:
            measured = "" if self.measured_speedup is None else f", measured {self.measured_speedup:.2f}x"
            predicted = "" if self.predicted_speedup is None else f", predicted about {self.predicted_speedup:.2f}x"
            lines.append(f"Transformer speed-up: limit by FLOPs {self.speedup_limit:.2f}x{predicted}{measured}.")
        return "\n".join(lines + [f"Note: {note}" for note in (*self.notes, *self.advice)])


def summarised(session: Session, has_controlnet: bool) -> Summary:
    """What the latest run of a session did.

    Args:
        session: of a pipeline.
        has_controlnet: the pipeline calls a ControlNet, whose time is not counted.
    """
    trace, plan = session.latest.trace, session.latest.plan
    ran = None if plan is None else _as_ran(trace, plan)
    return Summary(
        num_steps=len(trace.steps),
        num_dense=sum(step.kind == "dense" for step in trace.steps),
        token_steps=trace.token_steps,
        speedup_limit=None if ran is None else ran.speedup_limit,
        predicted_speedup=None if ran is None else ran.predicted_speedup,
        measured_speedup=trace.measured_speedup,
        notes=tuple(trace.notes),
        advice=_advice(session, has_controlnet),
    )


def _advice(session: Session, has_controlnet: bool) -> tuple[str, ...]:
    """What `Summary.advice` says."""
    latest = session.latest
    trace, plan, config = latest.trace, latest.plan, latest.config
    if plan is None or config is None or not plan.has_savings:
        return ()
    advice = [f"RAS gains little here: {why_small(plan)}"] if is_small(plan) else []
    if (reason := why_short(plan, config)) is not None:
        advice.append(reason)
    count = latest.num_references
    could_reuse = session.token_plan.reuses_references and not config.reference_reuse
    if could_reuse and plan.num_region_steps and 4 * count >= plan.num_tokens:
        advice.append(
            f"Every region step computed {count} reference tokens beside those of the picture; with "
            "reference_reuse=True only dense steps do."
        )
    has_one_plan = config.region_of_interest != "inpaint"  # one set for all would have to hold all masks
    if latest.costed is not None and has_one_plan:
        reason = why_slow(plan, latest.costed, latest.num_parts)
        advice += [] if reason is None else [reason]
    if has_controlnet:
        advice.append("All speed-ups here are of the transformer alone, without the ControlNet's time.")
    measured = trace.measured_speedup if len(trace.steps) == len(plan) else None
    if measured is not None and measured < 1:
        advice.append(
            f"This run was not faster than its own dense steps (measured {measured:.2f}x). Time some pictures with "
            "`ras-dit compare`; take a larger batch, a preset that skips whole steps ('balanced'), or disable RAS."
        )
    return tuple(advice)


def _as_ran(trace: Trace, plan: Plan) -> Plan:
    """The plan of what ran in its stead; before anything ran, itself."""
    if plan.cost is None or not trace.steps:
        return plan
    ran = trace.as_plan(plan)
    total = sum(plan.cost.work_of[step.num_active].flops for step in ran if step.num_active)
    return replace(ran, cost=replace(plan.cost, total_flops=total))
