"""Turning RAS on and off: `enable`, `accelerate`, `disable`, and the `Handle` they give."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ras_dit.config import PRESETS, RASConfig
from ras_dit.flops import plan_cost
from ras_dit.models import TOKEN_PLANS, token_plan_of
from ras_dit.models.sizes import grid_for_size
from ras_dit.plan import Plan, build_plan
from ras_dit.schedule import why_stochastic
from ras_dit.session import Session
from ras_dit.trace import Trace

_MARK = "_ras_dit_handle"


@dataclass(frozen=True)
class Summary:
    """What the latest generation did. ``print`` shows it.

    Attributes:
        num_steps: transformer evaluations that ran.
        num_dense: those over all tokens.
        token_steps: T, the sum of computed / all tokens.
        predicted_speedup: dense FLOPs over those of the steps as they ran (before anything ran: as planned), of the
            transformer.
        measured_speedup: dense time over spent time of the transformer, from the run's own dense steps.
        notes: why anything ran otherwise than planned.
    """

    num_steps: int
    num_dense: int
    token_steps: float
    predicted_speedup: float | None
    measured_speedup: float | None
    notes: tuple[str, ...]

    def __str__(self) -> str:
        if not self.num_steps:
            return "RAS: nothing has run yet."
        lines = [
            f"RAS: {self.num_steps} evaluations, {self.num_dense} dense; T = {self.token_steps:.2f} token-steps "
            f"instead of {self.num_steps}."
        ]
        if self.predicted_speedup is not None:
            measured = "" if self.measured_speedup is None else f", measured {self.measured_speedup:.2f}x"
            lines.append(f"Transformer speed-up: limit by FLOPs {self.predicted_speedup:.2f}x{measured}.")
        return "\n".join(lines + [f"Note: {note}" for note in self.notes])


class Handle:
    """RAS enabled on a pipeline. Call the pipeline as always; ask here what happened; `disable` to undo."""

    def __init__(self, pipe: Any, config: RASConfig) -> None:
        self._pipe = pipe
        self._session = Session(pipe, config, token_plan_of(pipe.transformer))
        self._is_enabled = True

    @property
    def config(self) -> RASConfig:
        return self._session.config

    @property
    def is_enabled(self) -> bool:
        return self._is_enabled

    @property
    def trace(self) -> Trace:
        """What ran in the latest generation (empty before the first)."""
        return self._session.trace

    @property
    def latest_plan(self) -> Plan | None:
        """What the latest generation was planned to compute, its text and reference tokens counted; None before it."""
        return self._session.plan

    def plan(
        self,
        num_inference_steps: int = 28,
        height: int | None = None,
        width: int | None = None,
        max_sequence_length: int = 256,
        num_frames: int | None = None,
    ) -> Plan:
        """What a call with these arguments would compute, with its cost per image and guidance branch.

        Args:
            num_inference_steps: as for the pipeline (a Heun scheduler evaluates twice a step, once in the last).
            height: of the picture, in pixels; None is the pipeline's default.
            width: likewise.
            max_sequence_length: text tokens, as for the pipeline (of the T5 encoder, for Stable Diffusion 3); they
                count in the cost.
            num_frames: of a video; None is the pipeline's default.

        Raises:
            ValueError: a size that the pipeline cannot make, or a step of the config outside the run.
        """
        return plan_for(self._pipe, self.config, num_inference_steps, height, width, max_sequence_length, num_frames)

    def summary(self) -> Summary:
        """What the latest generation did, and why anything ran otherwise than planned."""
        trace, plan = self.trace, self._session.plan
        return Summary(
            num_steps=len(trace.steps),
            num_dense=sum(step.kind == "dense" for step in trace.steps),
            token_steps=trace.token_steps,
            predicted_speedup=None if plan is None else _limit_of(trace, plan),
            measured_speedup=trace.measured_speedup,
            notes=tuple(trace.notes),
        )

    def disable(self) -> None:
        """Put the pipeline back exactly as it was. The trace and summary stay readable.

        Raises:
            ValueError: it is disabled already.
        """
        if not self._is_enabled:
            raise ValueError("disable: RAS is already disabled on this handle; call ras_dit.enable(pipe, ...) again.")
        self._is_enabled = False
        self._session.close()
        delattr(self._session.transformer, _MARK)

    def __repr__(self) -> str:
        state = "enabled" if self._is_enabled else "disabled"
        return f"<ras_dit.Handle {state} on {type(self._session.transformer).__name__}>"


def _limit_of(trace: Trace, plan: Plan) -> float:
    """Dense FLOPs over those of the steps that ran."""
    if plan.cost is None or not trace.steps:
        return plan.speedup_limit
    counts = [trace.num_tokens if step.active is None else step.active.shape[1] for step in trace.steps]
    spent = sum(plan.cost.flops_of[count] for count in counts if count)
    return plan.cost.dense_flops * len(counts) / spent


def plan_for(
    pipe: Any,
    config: RASConfig,
    num_inference_steps: int = 28,
    height: int | None = None,
    width: int | None = None,
    max_sequence_length: int = 256,
    num_frames: int | None = None,
) -> Plan:
    """`Handle.plan` for a pipeline that RAS need not be enabled on."""
    token_plan = token_plan_of(pipe.transformer)
    grid = grid_for_size(pipe, token_plan, height, width, num_frames)
    order = getattr(pipe.scheduler, "order", 1)
    plan = build_plan(config, num_inference_steps * order - (order - 1), grid.num_tokens)
    num_text = token_plan.num_text(pipe, max_sequence_length) + token_plan.num_registers
    return Plan(plan.steps, plan.num_tokens, plan_cost(plan, token_plan, pipe.transformer, num_text, config=config))


def resolve_config(config: RASConfig | str | Path | None) -> RASConfig:
    """A config from itself, a preset's name, a .json / .yaml file, or None for the default preset."""
    if isinstance(config, RASConfig):
        return config
    if config is None:
        return RASConfig.preset("balanced")
    if isinstance(config, Path) or (isinstance(config, str) and Path(config).suffix):
        return RASConfig.load(config)
    if isinstance(config, str):
        return RASConfig.preset(config)
    raise ValueError(
        f"config: got {type(config).__name__}; allowed: a RASConfig, a preset ({', '.join(PRESETS)}) or a file's path."
    )


def enable(pipe: Any, config: RASConfig | str | Path | None = None, *, preset: str | None = None) -> Handle:
    """Turn Region-Adaptive Sampling on for one pipeline instance.

    Args:
        pipe: a diffusers pipeline with a supported ``transformer`` and a ``scheduler``.
        config: a `RASConfig`, the name of a preset, or the path of a config file; None takes ``balanced``.
        preset: the name of a preset, instead of ``config``.

    Returns:
        The handle: plan, trace, summary, and `Handle.disable`.

    Raises:
        ValueError: no supported transformer, RAS already enabled, or a bad config.
    """
    if preset is not None and config is not None:
        raise ValueError(f"enable: got both a config and preset={preset!r}; give one of them.")
    chosen = resolve_config(preset if preset is not None else config)
    if getattr(pipe, "transformer", None) is None or getattr(pipe, "scheduler", None) is None:
        raise ValueError(
            f"enable: got {type(pipe).__name__}; allowed: a diffusers pipeline with a transformer and a scheduler "
            "(models with a U-Net have no tokens to choose from)."
        )
    token_plan_of(pipe.transformer)
    if "PAG" in type(pipe).__name__:
        raise ValueError(
            f"enable: got {type(pipe).__name__}; perturbed-attention guidance is not supported. Use the plain pipeline "
            "of the same model, with skip-layer guidance if you like."
        )
    if hasattr(pipe.transformer, _MARK):
        raise ValueError(
            "enable: RAS is already enabled on this pipeline's transformer. Call ras_dit.disable(pipe) first, then "
            "enable it with the new config."
        )
    check_text_reuse(pipe, chosen)
    handle = Handle(pipe, chosen)
    setattr(pipe.transformer, _MARK, handle)
    if chosen.has_savings and (reason := why_stochastic(pipe.scheduler)):
        handle._session.note(f"{reason}: noise cannot be carried from step to step, so the whole run was dense.")
    return handle


def check_text_reuse(pipe: Any, config: RASConfig) -> None:
    """Refuse `RASConfig.text_reuse` where the model cannot do it.

    Raises:
        ValueError: says which models can.
    """
    if config.text_reuse and not token_plan_of(pipe.transformer).text_rows:
        able = ", ".join(name for name, token_plan in sorted(TOKEN_PLANS.items()) if token_plan.text_rows)
        raise ValueError(
            f"text_reuse: got {type(pipe.transformer).__name__}; allowed: {able}. Leave it out for others."
        )


def disable(pipe: Any) -> None:
    """Undo `enable` on this pipeline.

    Raises:
        ValueError: RAS is not enabled on it.
    """
    handle = getattr(getattr(pipe, "transformer", None), _MARK, None)
    if handle is None:
        raise ValueError("disable: RAS is not enabled on this pipeline; nothing to undo.")
    handle.disable()


@contextmanager
def accelerate(
    pipe: Any, config: RASConfig | str | Path | None = None, *, preset: str | None = None
) -> Iterator[Handle]:
    """`enable` for the length of a ``with`` block; the pipeline is put back however the block ends."""
    handle = enable(pipe, config, preset=preset)
    try:
        yield handle
    finally:
        if handle.is_enabled:
            handle.disable()
