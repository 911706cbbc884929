"""What the options of `RASConfig` may be: their choices, and the checks that say what is allowed."""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from ras_dit.config import RASConfig

Importance = Literal["error", "std", "l2norm", "random", "round_robin"]
Rules = Literal["ras_dit", "reference"]
KVCacheDType = Literal["float8_e4m3fn", "float8_e5m2", "bfloat16", "float16"]
ScoreFilter = Literal["blur", "dilate"]
Kernels = Literal["torch", "triton"]
Position = int | float
"""A step of the run: an int is an evaluation index, a float in (0, 1) a share of the run."""


PLAN_OPTIONS = (
    "sample_ratio",
    "warmup_steps",
    "refresh_every",
    "refresh_steps",
    "final_sample_ratio",
    "skip_steps",
    "end_step",
)
"""What `step_ratios` say instead."""

NOT_IN_REFERENCE = (
    "final_sample_ratio",
    "skip_steps",
    "refresh_every",
    "step_ratios",
    "refresh_tolerance",
    "token_multiple",
    "score_filter",
    "anchor_stride",
    "neighbor_update",
    "text_reuse",
    "reference_reuse",
    "forecast_below",
    "forecast_reach",
    "forecast_midpoint",
    "solver_order",
    "forecast_fit",
    "kv_forecast",
    "region_of_interest",
    "auto",
)
"""What the authors' implementation does not have."""


def check(config: RASConfig) -> None:
    """Refuse options outside their range, or that contradict each other.

    Raises:
        ValueError: says what is allowed.
    """
    _check_ratios(config)
    _check_steps(config)
    _check_step_ratios(config)
    _check_fit(config)
    _check_reuse(config)
    _check_choices(config)
    _check_rules(config)


def nearest(word: str, known: Any) -> str:
    """A hint at the known word that is nearest, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def plain_number(value: Any) -> Any:
    """A number of NumPy as one of Python, which JSON and YAML know; anything else as it is."""
    if isinstance(value, (bool, int)) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _is_number(value: Any, *kinds: type) -> bool:
    """Whether a value is a finite number of such a kind."""
    is_number = isinstance(value, kinds or (int, float)) and not isinstance(value, bool)
    return is_number and (isinstance(value, int) or math.isfinite(value))


def _check_ratios(config: RASConfig) -> None:
    for name in ("sample_ratio", "final_sample_ratio", "kv_cache_layers"):
        value = getattr(config, name)
        if value is None and name == "final_sample_ratio":
            continue
        if not _is_number(value) or not 0 < value <= 1:
            of_what = "layers" if name == "kv_cache_layers" else "tokens"
            raise ValueError(
                f"{name}: got {value!r}; allowed: a share of the {of_what} in (0, 1]. Use 0.25 for a quarter of them, "
                "1.0 for all."
            )
    if not _is_number(config.forecast_below) or not 0 < config.forecast_below <= 1:
        raise ValueError(f"forecast_below: got {config.forecast_below!r}; allowed: a noise level in (0, 1].")
    reach = config.forecast_reach
    if reach is not None and (not _is_number(reach) or not reach > 0):
        raise ValueError(f"forecast_reach: got {reach!r}; allowed: a number above 0, or None.")
    for name in ("high_ratio", "forecast_damping", "kv_forecast", "neighbor_update"):
        value = getattr(config, name)
        if not _is_number(value) or not 0 <= value <= 1:
            raise ValueError(f"{name}: got {value!r}; allowed: a number in [0, 1].")
    if not _is_number(config.starvation_scale) or not config.starvation_scale >= 0:
        raise ValueError(f"starvation_scale: got {config.starvation_scale!r}; allowed: a number of at least 0.")


def _check_position(name: str, value: Any) -> None:
    is_index = _is_number(value, int) and value >= 0
    is_share = _is_number(value, float) and 0 < value < 1
    if not (is_index or is_share):
        raise ValueError(
            f"{name}: got {value!r}; allowed: a step index (int, at least 0) or a share of the run (float in (0, 1))."
        )


def _check_steps(config: RASConfig) -> None:
    _check_position("warmup_steps", config.warmup_steps)
    for name in ("refresh_steps", "skip_steps"):
        for value in getattr(config, name):
            _check_position(name, value)
    if config.warmup_steps == 0 and config.sample_ratio < 1:
        raise ValueError(
            "warmup_steps: got 0; allowed: at least 1 when sample_ratio < 1, because a region step needs the keys, "
            "values and noise of a dense one before it. Use warmup_steps=1."
        )
    every = config.refresh_every
    if every is not None and (not _is_number(every, int) or every < 2):
        raise ValueError(f"refresh_every: got {every!r}; allowed: an int of at least 2, or None.")
    end = config.end_step
    if end is not None and (not _is_number(end, int) or end < 0):
        raise ValueError(f"end_step: got {end!r}; allowed: an int of at least 0, or None.")


def _check_step_ratios(config: RASConfig) -> None:
    ratios = config.step_ratios
    for value in ratios:
        if not _is_number(value) or not 0 <= value <= 1:
            raise ValueError(f"step_ratios: got {value!r}; allowed: one share of the tokens in [0, 1] per evaluation.")
    if ratios and ratios[0] != 1:
        raise ValueError(f"step_ratios: got {ratios[0]!r} first; allowed: 1, because the first evaluation is dense.")
    if ratios:
        _refuse_changed(config, PLAN_OPTIONS, "step_ratios say it for every evaluation: give one or the other.")


def _check_fit(config: RASConfig) -> None:
    """Four finite numbers per evaluation (of the run it was fitted to, to which step_ratios stretch or shrink)."""
    fit = config.forecast_fit
    for value in fit:
        if not _is_number(value):
            raise ValueError(f"forecast_fit: got {value!r}; allowed: finite numbers. Use `ras_dit.calibrate`.")
    if len(fit) % 4:
        raise ValueError(f"forecast_fit: got {len(fit)} numbers; allowed: 4 per evaluation. Use `ras_dit.calibrate`.")


def _refuse_changed(config: RASConfig, names: tuple[str, ...], why: str) -> None:
    """Options that are not at their defaults and mean nothing here."""
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    for name in names:
        if getattr(config, name) != defaults[name]:
            raise ValueError(f"{name}: got {getattr(config, name)!r}; {why}")


def _check_reuse(config: RASConfig) -> None:
    """Layers that keep no keys and values have none of text or references, either."""
    for name in ("text_reuse", "reference_reuse"):
        if getattr(config, name) and config.kv_cache_layers < 1:
            raise ValueError(
                f"{name}: got True with kv_cache_layers={config.kv_cache_layers}: layers that keep nothing would go "
                "without what is reused; allowed: kv_cache_layers=1. Leave one of them out."
            )


def _check_choices(config: RASConfig) -> None:
    for name, kind in (("importance", Importance), ("rules", Rules), ("kernels", Kernels)):
        value, allowed = getattr(config, name), get_args(kind)
        if value not in allowed:
            raise ValueError(f"{name}: got {value!r}; allowed: {', '.join(allowed)}.{nearest(str(value), allowed)}")
    if not _is_number(config.forecast_order, int) or config.forecast_order not in (0, 1, 2):
        raise ValueError(f"forecast_order: got {config.forecast_order!r}; allowed: 0, 1 or 2.")
    multiple = config.token_multiple
    if multiple is not None and (not _is_number(multiple, int) or multiple < 1):
        raise ValueError(f"token_multiple: got {multiple!r}; allowed: an int of at least 1, or None.")
    if not _is_number(config.solver_order, int) or config.solver_order not in (1, 2):
        raise ValueError(f"solver_order: got {config.solver_order!r}; allowed: 1 or 2.")
    if config.kv_cache_dtype not in (None, *get_args(KVCacheDType)):
        dtypes = ", ".join(get_args(KVCacheDType))
        raise ValueError(f"kv_cache_dtype: got {config.kv_cache_dtype!r}; allowed: {dtypes}, or None.")
    if config.kv_cache_device is not None and not _is_device(config.kv_cache_device):
        raise ValueError(f"kv_cache_device: got {config.kv_cache_device!r}; allowed: a device such as 'cpu', or None.")
    if config.score_filter not in (None, *get_args(ScoreFilter)):
        raise ValueError(f"score_filter: got {config.score_filter!r}; allowed: blur, dilate, or None.")
    stride = config.anchor_stride
    if stride is not None and (not _is_number(stride, int) or stride < 2):
        raise ValueError(f"anchor_stride: got {stride!r}; allowed: an int of at least 2, or None.")
    tolerance = config.refresh_tolerance
    if tolerance is not None and (not _is_number(tolerance) or not tolerance > 0):
        raise ValueError(f"refresh_tolerance: got {tolerance!r}; allowed: a number above 0, or None.")
    for option in dataclasses.fields(config):
        value = getattr(config, option.name)
        if isinstance(option.default, bool) and not isinstance(value, bool):
            raise ValueError(f"{option.name}: got {value!r}; allowed: True or False.")
    for name in ("seed", "skip_num_step", "skip_num_step_length"):
        if not _is_number(getattr(config, name), int):
            raise ValueError(f"{name}: got {getattr(config, name)!r}; allowed: an int.")


def _is_device(name: Any) -> bool:
    """Whether PyTorch knows a device by this name; not whether there is one."""
    import torch

    try:
        return isinstance(name, str) and torch.device(name) is not None
    except RuntimeError:
        return False


def _check_rules(config: RASConfig) -> None:
    if config.rules == "reference":
        _check_reference(config)
    elif config.skip_num_step or config.skip_num_step_length:
        raise ValueError(
            "skip_num_step and skip_num_step_length belong to reference rules: use RASConfig.reference(...), or "
            "final_sample_ratio for a ratio that changes over the run."
        )


def _check_reference(config: RASConfig) -> None:
    _refuse_changed(config, NOT_IN_REFERENCE, "the reference rules have no such option.")
    if config.importance not in ("std", "l2norm") or config.forecast_order != 0:
        raise ValueError(
            f"reference rules: got importance={config.importance!r}, forecast_order={config.forecast_order}; "
            "allowed: importance 'std' or 'l2norm' with forecast_order 0."
        )
    for name in ("warmup_steps", "refresh_steps"):
        values = getattr(config, name)
        for value in values if isinstance(values, tuple) else (values,):
            if not _is_number(value, int):
                raise ValueError(f"{name}: got {value!r}; the reference rules count in whole steps: give ints.")
    if bool(config.skip_num_step) != bool(config.skip_num_step_length) or config.skip_num_step_length < 0:
        raise ValueError(
            f"skip_num_step={config.skip_num_step}, skip_num_step_length={config.skip_num_step_length}: give both "
            "(the length at least 1), or leave both 0."
        )
