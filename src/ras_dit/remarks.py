"""What a user should know of a run that is not as it looks: said once it begins."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import fields

from ras_dit.config import RASConfig
from ras_dit.gain import is_small, why_small
from ras_dit.plan import Plan


class RASWarning(UserWarning):
    """Something ran otherwise than asked for; `Handle.summary` repeats why, unless it was no run that RAS follows."""


class AdviceWarning(RASWarning):
    """A run goes as asked for, which may not be what is wanted; ``warnings.simplefilter("ignore", AdviceWarning)`` is
    enough to hear no more of it."""


class SmallGainWarning(AdviceWarning):
    """RAS is predicted to gain less than five per cent."""


class ShortRunWarning(AdviceWarning):
    """The run has so few evaluations that little can be left out without harm."""


class Warner:
    """Says everything once."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __call__(self, reason: str, category: type[RASWarning] = RASWarning) -> None:
        """Warn of a reason why something runs otherwise than asked for, or than is wise."""
        if reason not in self._said:
            warnings.warn(reason, category, stacklevel=3)
            self._said.add(reason)  # not, if it was made an error

    def of_small_gain(self, reason: str) -> None:
        """Warn of a run that is hardly worth it, whatever the run; `Handle.summary` gives advice on every one."""
        if "small gain" not in self._said:
            text = f"RAS gains little here. {reason} auto=True leaves such runs dense."
            warnings.warn(text, SmallGainWarning, stacklevel=3)
            self._said.add("small gain")


SHORT_RUN, LONG_RUN = 10, 20
SPARSE = 0.4
"""In runs of so few evaluations, and of fewer than the second number with less than this share of the tokens, no
preset comes nearer to the dense picture than as many steps without RAS (docs/quality.md, "Runs of other lengths")."""

OUTSIDE = (
    "The transformer was called outside of a run of the pipeline that RAS is enabled on: that call was dense. Another "
    "pipeline that shares the transformer has to share the scheduler object, too (`from_pipe` does that)."
)
UNSEEN_CONTROL = (
    "The ControlNet is compiled as a whole, or belongs to a pipeline that RAS was not enabled on (`from_pipe`): it is "
    "called in skipped steps, too, and where it is switched on or off in the middle of the run "
    "(control_guidance_start, control_guidance_end) goes unnoticed. Compile its blocks instead, and enable RAS on the "
    "pipeline that has it."
)
RECONFIGURED = "The config was changed in the middle of the run: the rest of it was dense."
PAUSED = "RAS was paused as the run began: it was dense."

OF_REGION_STEPS = (
    "importance",
    "shared_active_set",
    "text_reuse",
    "reference_reuse",
    "kv_forecast",
    "kv_cache_dtype",
    "kv_cache_device",
    "kv_cache_layers",
    "score_filter",
    "anchor_stride",
    "neighbor_update",
    "starvation_scale",
    "high_ratio",
    "token_multiple",
)
"""Options that only region steps heed."""


def unused_options(config: RASConfig, plan: Plan, num_references: int) -> Iterator[tuple[str, bool]]:
    """Options of a config that change nothing in a run, and whether that is worth advice.

    Args:
        config: of the run.
        plan: what it computes.
        num_references: tokens beside the grid.
    """
    if config.region_of_interest is not None and plan.has_savings and not plan.num_region_steps:
        yield (
            "region_of_interest: this plan has no region steps, so it changes nothing. Take preset 'regions', or a "
            "sample_ratio.",
            True,
        )
    idle = [name for name in OF_REGION_STEPS if getattr(config, name) != getattr(RASConfig, name)]
    if idle and plan.has_savings and not plan.num_region_steps and not config.has_regions:
        yield (
            f"{', '.join(idle)}: heeded in region steps alone, and this plan has none, so nothing changes. Take preset "
            "'regions', or a sample_ratio.",
            True,
        )
    if plan.has_savings:
        yield from ((remark, True) for remark in _unread(config))
    if config.reference_reuse and plan.num_region_steps and not num_references:
        yield "reference_reuse: this call has no reference tokens, so it changes nothing.", False


def _unread(config: RASConfig) -> Iterator[str]:
    """Options that another one keeps from being read."""
    changed = {option.name for option in fields(config) if getattr(config, option.name) != option.default}
    of_metrics = [name for name in ("starvation_scale", "high_ratio") if name in changed]
    if of_metrics and config.importance not in ("std", "l2norm"):
        yield (
            f"{', '.join(of_metrics)}: importance={config.importance!r} has no such thing, so nothing changes. Take "
            "importance='std' or 'l2norm'."
        )
    of_slopes = ["forecast_midpoint", "forecast_damping"]
    if not config.kv_forecast:
        of_slopes += ["forecast_below", "forecast_reach"]
    unread = [name for name in of_slopes if name in changed]
    if unread and config.forecast_order == 0 and not config.forecast_fit:
        yield f"{', '.join(unread)}: forecast_order=0 reuses noise as it is, so nothing changes. Take forecast_order=1."


def why_short(plan: Plan, config: RASConfig) -> str | None:
    """What leaving so much out does to so short a run; None if the plan leaves nothing out, or not too much.

    Args:
        plan: of the run.
        config: of the run. With a region of interest fewer tokens say nothing: they are those that may change.
    """
    count = len(plan)
    is_sparse = plan.token_steps < SPARSE * count and config.region_of_interest is None
    if not plan.has_savings or (count > SHORT_RUN and (count >= LONG_RUN or not is_sparse)):
        return None
    return (
        f"The run has {count} evaluations, in which {plan.token_steps / count:.0%} of the tokens are computed. Of the "
        "presets that were measured in runs so short, none that computes so little came nearer to the dense picture "
        "than as many steps without RAS. Take more steps with it, or fewer without: in 15 presets 'quality' and "
        "'regions' held, in 20 all, though 'fast' and 'regions_fast' were level with as many steps."
    )


def why_left(plan: Plan, config: RASConfig, warn: Warner) -> str | None:
    """Why `RASConfig.auto` leaves a run dense: it gains little, or is too short for its plan. None if it does not;
    without ``auto`` the user is warned instead.

    Args:
        plan: of the run, with its cost.
        config: of the run.
        warn: says it once.
    """
    short = why_short(plan, config)
    if config.auto and (is_small(plan) or short is not None):
        return "auto: the run was left dense" + (f", {why_small(plan)}" if is_small(plan) else f". {short}")
    if is_small(plan):
        warn.of_small_gain(f"This run: {why_small(plan)}")
    if short is not None:
        warn(short, ShortRunWarning)
    return None
