"""Turning RAS on and off: `enable`, `accelerate`, `disable`, and the `Handle` they give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ras_dit.by_image import has_own_sets
from ras_dit.config import RASConfig
from ras_dit.flops import Layers, plan_cost
from ras_dit.gain import DeviceRates, Model, is_small, why_small, with_prediction
from ras_dit.importance import Score
from ras_dit.models import TOKEN_PLANS, check_uncached, check_uncompiled, token_plan_of
from ras_dit.models.sizes import check_count, default_call, default_rows, default_text, grid_for_size
from ras_dit.pipeline import device_of, transformers_of, weakly
from ras_dit.plan import Plan, build_plan
from ras_dit.presets import PRESETS
from ras_dit.region import RegionOfInterest
from ras_dit.schedule import NOT_CARRIED, num_evaluations, why_stochastic
from ras_dit.session import Session
from ras_dit.summary import Summary, summarised
from ras_dit.trace import Trace
from ras_dit.why_dense import odd_backend

_MARK = "_ras_dit_handle"


class Handle:
    """RAS enabled on a pipeline. Call the pipeline as always; ask here what happened; `disable` to undo."""

    def __init__(
        self, pipe: Any, config: RASConfig, rates: DeviceRates | None = None, score: Score | None = None
    ) -> None:
        self._pipe: Callable[[], Any] = lambda: pipe
        self._session = Session(pipe, config, token_plan_of(pipe.transformer), rates, score)
        self._is_enabled = True
        self._has_controlnet = getattr(pipe, "controlnet", None) is not None
        self._name = type(pipe.transformer).__name__
        self._marked = [*transformers_of(pipe), pipe]  # a pipeline may get another transformer
        for owner in self._marked:
            vars(owner)[_MARK] = self

    @property
    def config(self) -> RASConfig:
        """What RAS was enabled with, or `configure` was given since."""
        return self._session.config

    @property
    def is_enabled(self) -> bool:
        """False after `disable`."""
        return self._is_enabled

    @property
    def trace(self) -> Trace:
        """What ran in the latest generation (empty before the first)."""
        return self._session.latest.trace

    @property
    def latest_plan(self) -> Plan | None:
        """What the latest generation was planned to compute, its text and reference tokens counted; None before it."""
        return self._session.latest.plan

    def plan(
        self,
        num_inference_steps: int = 28,
        height: int | None = None,
        width: int | None = None,
        max_sequence_length: int | None = None,
        num_frames: int | None = None,
        num_images: int = 1,
        num_reference_tokens: int = 0,
        guidance_rows: int | None = None,
    ) -> Plan:
        """What a call with these arguments would compute, with its cost per image and guidance row.

        What only the call shows is not in it: the mask of ``region_of_interest="inpaint"``, given frames, a second
        transformer.

        Args:
            num_inference_steps: as for the pipeline (a Heun scheduler evaluates twice a step, once in the last).
            height: of the picture, in pixels; None is the pipeline's default.
            width: likewise.
            max_sequence_length: text tokens, as for the pipeline (of the T5 encoder, for Stable Diffusion 3); they
                count in the cost. None is the pipeline's default.
            num_frames: of a video; None is the pipeline's default.
            num_images: pictures of one call; the predicted speed-up depends on them.
            num_reference_tokens: tokens of reference pictures (edits with FLUX.1 Kontext, FLUX.2, Qwen-Image): one of
                the picture's own size has as many as that.
            guidance_rows: rows of a picture in all calls of an evaluation together; they count in memory and predicted
                speed-up. None is what the pipeline does unless told otherwise (Qwen-Image guides with a negative prompt
                only: 2).

        Raises:
            ValueError: RAS is disabled and the pipeline gone; a size that the pipeline cannot make, or of other
                proportions than the region of interest; a step of the config outside the run.
        """
        size = (height, width, max_sequence_length, num_frames, num_images, num_reference_tokens, guidance_rows)
        pipe = self._pipe()
        if pipe is None:
            raise ValueError("plan: got a disabled handle whose pipeline is gone; call ras_dit.plan_for(pipe, config).")
        return plan_for(pipe, self.config, num_inference_steps, *size, rates=self._session.rates)

    def configure(
        self, config: RASConfig | str | Path | None = None, *, preset: str | None = None, score: Score | None = None
    ) -> None:
        """Go by another config from the next run on; arguments, errors and warnings as for `enable`.

        All hooks stay where they are, and compiled blocks compiled: a server can give every request a config of its
        own. What is left of a run under way is dense. Keys and values of ``static_memory`` are given back.

        Raises:
            ValueError: RAS is disabled, or as for `enable`; the config before it holds on then.
        """
        pipe = self._pipe() if self._is_enabled else None
        if pipe is None:
            raise ValueError("configure: RAS is disabled on this handle; call ras_dit.enable(pipe, config) instead.")
        chosen, before = _checked(pipe, config, preset, score, "configure"), (self.config, self._session.score)
        self._session.configure(chosen, score)
        try:
            _warn_of(pipe, self)
        except BaseException:  # whoever makes errors of warnings has the config before it
            self._session.configure(*before)
            raise

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Runs that begin inside the block are dense, and all hooks stay where they are."""
        before, self._session.is_paused = self._session.is_paused, True
        try:
            yield
        finally:
            self._session.is_paused = before

    def summary(self) -> Summary:
        """What the latest generation did, and why anything ran otherwise than planned."""
        return summarised(self._session, self._has_controlnet)

    def disable(self) -> None:
        """Put the pipeline back exactly as it was. The trace and summary stay readable.

        Raises:
            ValueError: it is disabled already.
        """
        if not self._is_enabled:
            raise ValueError("disable: RAS is already disabled on this handle; call ras_dit.enable(pipe, ...) again.")
        self._is_enabled = False
        self._session.close()
        for owner in self._marked:
            del vars(owner)[_MARK]
        self._marked, self._pipe = [], weakly(self._pipe())  # a handle that is kept holds no model

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        """`disable`, if that was not done inside."""
        if self._is_enabled:
            self.disable()

    def __repr__(self) -> str:
        state = "enabled" if self._is_enabled else "disabled"
        return f"<ras_dit.Handle {state} on {self._name}>"


def plan_for(
    pipe: Any,
    config: RASConfig | str | Path | None = None,
    num_inference_steps: int = 28,
    height: int | None = None,
    width: int | None = None,
    max_sequence_length: int | None = None,
    num_frames: int | None = None,
    num_images: int = 1,
    num_reference_tokens: int = 0,
    guidance_rows: int | None = None,
    *,
    rates: DeviceRates | None = None,
    device: torch.device | str | None = None,
) -> Plan:
    """`Handle.plan` for a pipeline that RAS need not be enabled on; ``config`` and ``rates`` as for `enable`.

    The prediction is for ``device``, a kind that need not be here, or without one for where the pipeline runs.
    """
    config = resolve_config(config)
    for name, count in (("num_inference_steps", num_inference_steps), ("num_images", num_images)):
        check_count(name, count)
    check_count("num_reference_tokens", num_reference_tokens, least=0)
    if guidance_rows is not None:
        check_count("guidance_rows", guidance_rows)
    token_plan = token_plan_of(pipe.transformer)
    grid = grid_for_size(pipe, token_plan, height, width, num_frames)
    region = config.region_of_interest
    num_allowed = int(region.tokens(grid).sum()) if isinstance(region, RegionOfInterest) else None
    plan = build_plan(config, num_evaluations(pipe.scheduler, num_inference_steps), grid.num_tokens, 0, num_allowed)
    length = default_text(pipe) if max_sequence_length is None else max_sequence_length
    num_text = token_plan.num_text(pipe, length) + token_plan.num_registers
    layers = Layers.of(token_plan, pipe.transformer)
    cost = plan_cost(plan, token_plan, layers, num_text, num_reference_tokens, config)
    place = device_of(pipe) if device is None else torch.device(device)
    num_rows = num_images * (guidance_rows or default_rows(pipe))
    own_sets = has_own_sets(token_plan, config, pipe.transformer)
    num_parts = num_images if own_sets and not token_plan.has_batched_positions else 1
    return with_prediction(replace(plan, cost=cost), config, Model.of(layers, place), num_rows, rates, num_parts)


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


def enable(
    pipe: Any,
    config: RASConfig | str | Path | None = None,
    *,
    preset: str | None = None,
    rates: DeviceRates | None = None,
    score: Score | None = None,
) -> Handle:
    """Turn Region-Adaptive Sampling on for one pipeline instance.

    Args:
        pipe: a diffusers pipeline with a supported ``transformer`` and a ``scheduler``.
        config: a `RASConfig`, the name of a preset, or the path of a config file; None takes ``balanced``.
        preset: the name of a preset, instead of ``config``.
        rates: of this device, for the predicted speed-up (`DeviceRates.measured` takes them); None is the constants of
            its kind, with which ``auto`` decides alike every time.
        score: ranks the tokens of region steps in the place of ``config.importance``: takes a `ScoreInputs` and returns
            a tensor [images, tokens], high where a token is wanted. Regions, anchors and filters of the config still
            hold. (A GPU is waited for once per region step, to look for NaN.)

    Returns:
        The handle: plan, trace, summary, and `Handle.disable`.

    Raises:
        ValueError: no supported transformer, a pipeline of perturbed-attention guidance, RAS or a step cache of
            diffusers enabled already, a bad config, or one that the model or the device cannot follow (``text_reuse``,
            ``reference_reuse``, ``kernels``, ``kv_cache_device``).

    Warns:
        RASWarning: the scheduler adds fresh noise, so that all runs will be dense; an attention backend other than
            native, which region steps refuse.
        SmallGainWarning: the predicted gain is under 5 %. (Runs of few evaluations are warned of as they begin,
            `ShortRunWarning`.)

    The pipeline's calls may raise `UnsupportedAttentionError`, and warn of runs that are dense for a reason that only
    the call shows.
    """
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
    if handle_of(pipe) is not None:
        raise ValueError(
            "enable: RAS is already enabled on this pipeline, or on its transformer. Call ras_dit.disable(pipe) first, "
            "then enable it with the new config."
        )
    chosen = _checked(pipe, config, preset, score, "enable")
    for transformer in transformers_of(pipe):
        check_uncached(transformer)
        check_uncompiled(transformer)
    handle = Handle(pipe, chosen, rates, score)
    try:
        _warn_of(pipe, handle)
    except BaseException:  # whoever makes errors of warnings has nothing to disable
        handle.disable()
        raise
    return handle


def _checked(
    pipe: Any, config: RASConfig | str | Path | None, preset: str | None, score: Score | None, what: str
) -> RASConfig:
    """The config that a call asks for, if this pipeline can follow it.

    Raises:
        ValueError: both a config and a preset, or as for `enable`.
    """
    if preset is not None and config is not None:
        raise ValueError(f"{what}: got both a config and preset={preset!r}; give one of them.")
    chosen = resolve_config(preset if preset is not None else config)
    check_reuse(pipe, chosen)
    if score is not None:
        _check_score(score, chosen)
    return chosen


def _warn_of(pipe: Any, handle: Handle) -> None:
    """Say what the runs to come will stumble over, or hardly gain."""
    config, warn = handle.config, handle._session.warn
    backend = odd_backend(token_plan_of(pipe.transformer), pipe.transformer)
    if backend is not None and config.has_regions:
        warn(
            f"Attention goes by the backend {backend!r}: region steps will raise UnsupportedAttentionError. Call "
            'pipe.transformer.set_attention_backend("native") first.'
        )
    if config.has_savings and (reason := why_stochastic(pipe.scheduler)):
        warn(f"{reason}: {NOT_CARRIED}")
    elif not config.auto and (plan := _default_plan(pipe, handle)) is not None and is_small(plan):
        warn.of_small_gain(f"One picture of the pipeline's default size: {why_small(plan)}")


def _check_score(score: Any, config: RASConfig) -> None:
    """Refuse a score that nothing would go by."""
    if not callable(score):
        raise ValueError(f"score: got {type(score).__name__}; allowed: a function that takes a ScoreInputs, or None.")
    if config.rules == "reference":
        raise ValueError("score: got one with rules='reference', which rank by their own; allowed: other rules.")
    if not config.has_regions:
        raise ValueError(
            "score: got one with a plan without region steps, in which nothing is ranked; allowed: plans with some. "
            "Take preset='regions', or a sample_ratio."
        )


def _default_plan(pipe: Any, handle: Handle) -> Plan | None:
    """What the pipeline's own defaults would compute; None where they cannot be told."""
    try:
        call = default_call(pipe)
        if call is None:
            return None
        return handle.plan(call.num_inference_steps)
    except Exception:  # a forecast of the speed must not keep anybody from enabling RAS
        return None


def check_reuse(pipe: Any, config: RASConfig) -> None:
    """Refuse `RASConfig.text_reuse` and `RASConfig.reference_reuse` where the model cannot do it.

    Raises:
        ValueError: says which models can.
    """
    token_plan = token_plan_of(pipe.transformer)
    can = {"text_reuse": token_plan.reuses_text(pipe.transformer), "reference_reuse": token_plan.reuses_references}
    fields = {"text_reuse": "text_rows", "reference_reuse": "reuses_references"}
    for option, is_able in can.items():
        if getattr(config, option) and not is_able:
            plans = [name for name, other in TOKEN_PLANS.items() if getattr(other, fields[option]) not in (None, False)]
            able, which = ", ".join(sorted(plans)), " of this configuration" if token_plan.transformer in plans else ""
            raise ValueError(
                f"{option}: got {type(pipe.transformer).__name__}{which}; allowed: {able}. Leave it out for others."
            )


def handle_of(pipe: Any) -> Handle | None:
    """The handle that RAS is enabled with on a pipeline (whatever transformer it had then), or on one of its
    transformers; None if it is not."""
    own: Handle | None = vars(pipe).get(_MARK)
    if own is not None and own._pipe() is pipe:  # a copy of the pipeline has its attributes, too
        return own
    marks = [getattr(transformer, _MARK, None) for transformer in transformers_of(pipe)]
    return next((mark for mark in marks if mark is not None), None)


def disable(pipe: Any) -> None:
    """Undo `enable` on this pipeline.

    Raises:
        ValueError: RAS is not enabled on it.
    """
    handle = handle_of(pipe)
    if handle is None:
        raise ValueError("disable: RAS is not enabled on this pipeline; nothing to undo.")
    handle.disable()


@contextmanager
def accelerate(
    pipe: Any,
    config: RASConfig | str | Path | None = None,
    *,
    preset: str | None = None,
    rates: DeviceRates | None = None,
    score: Score | None = None,
) -> Iterator[Handle]:
    """`enable` for the length of a ``with`` block; the pipeline is put back however the block ends."""
    with enable(pipe, config, preset=preset, rates=rates, score=score) as handle:
        yield handle
