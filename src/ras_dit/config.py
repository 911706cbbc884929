"""What a user may choose: one frozen, validated dataclass, its presets, and its way to and from files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from ras_dit.config_checks import (
    PLAN_OPTIONS,
    Importance,
    Kernels,
    KVCacheDType,
    Position,
    Rules,
    ScoreFilter,
    check,
    nearest,
    plain_number,
)
from ras_dit.files import checked_suffix, read_as, save_text
from ras_dit.region import RegionOfInterest, as_region


def _option(default: Any, help: str, *, important: bool = False) -> Any:
    return field(default=default, metadata={"help": help, "important": important})


@dataclass(frozen=True)
class RASConfig:
    """Which denoising steps run dense, how many tokens the others compute, and how those are chosen.

    Steps are counted in transformer evaluations from 0, the first one of the call (so an img2img call that starts in
    the middle of the schedule still begins with its warm-up). Wherever a step is asked for, an int is an index and a
    float in (0, 1) a share of the run's length. What each option means: its ``metadata["help"]`` in
    ``dataclasses.fields(RASConfig)``, which ``ras-dit generate --help`` prints with the defaults.

    Raises:
        ValueError: a value outside its range, or options that contradict each other; the message says what is allowed.

    Source: Liu et al., "Region-Adaptive Sampling for Diffusion Transformers", arXiv 2502.10389, section 3.
    """

    # Important options.
    sample_ratio: float = _option(
        0.25, "Share of the image tokens computed in a region step, in (0, 1]; 1 runs everything dense.", important=True
    )
    warmup_steps: Position = _option(
        4, "Dense evaluations at the start (int, at least 1), or a share of the run (float in (0, 1)).", important=True
    )
    refresh_every: int | None = _option(
        None, "After the warm-up, run every k-th evaluation dense (k >= 2).", important=True
    )
    refresh_steps: tuple[Position, ...] = _option(
        (), "Evaluations that run dense (the paper's error-reset steps).", important=True
    )
    importance: Importance = _option(
        "error",
        "How tokens are ranked: predicted error, the paper's std or l2norm, or a baseline: random, round_robin.",
        important=True,
    )
    forecast_order: int = _option(
        0, "Noise of tokens that are not computed: 0 reuses it, 1 and 2 extrapolate it in sigma.", important=True
    )

    region_of_interest: RegionOfInterest | Literal["inpaint"] | None = _option(
        None,
        "Which tokens region steps may choose: a mask (PIL image, array, tensor, path), or 'inpaint' for that of the "
        "inpainting pipeline's call. Dense steps still compute, and change, the whole picture.",
        important=True,
    )
    auto: bool = _option(
        False,
        "Leave a run dense whose predicted speed-up is under 5 % (a small model or picture), or that has too few "
        "evaluations for its plan (those that RAS warns of).",
        important=True,
    )

    # To tinker with.
    final_sample_ratio: float | None = _option(
        None, "The ratio falls (or rises) linearly from sample_ratio to this over the region steps, in (0, 1]."
    )
    skip_steps: tuple[Position, ...] = _option(
        (), "Evaluations that compute no token at all: everything is forecast. Not inside the warm-up."
    )
    step_ratios: tuple[float, ...] = _option(
        (),
        "A whole plan: the share of tokens of every evaluation, 1 dense and 0 skipped, instead of the options above. "
        "It is stretched or shrunk to runs of another length.",
    )
    refresh_tolerance: float | None = _option(
        None,
        "Run a region or skipped step dense if the predicted error of the tokens left out exceeds this share of the "
        "noise (> 0, try 0.1). On a GPU this waits for the device once a step.",
    )
    end_step: int | None = _option(None, "Last evaluation that may be a region step (inclusive); all later ones dense.")
    starvation_scale: float = _option(
        0.1, "std and l2norm: how fast a token that was not computed gains importance, per step (>= 0)."
    )
    high_ratio: float = _option(
        1.0, "std and l2norm: share of the dropped tokens that is taken from the high end of the metric, in [0, 1]."
    )
    forecast_damping: float = _option(
        0.5, "Slope of the forecast is multiplied by this, in [0, 1]; 0 equals forecast_order 0."
    )
    score_filter: ScoreFilter | None = _option(
        None, "Make neighbours alike in the ranking: blur (mean) or dilate (maximum) of the score over 3 x 3 tokens."
    )
    anchor_stride: int | None = _option(
        None,
        "In every cell of this many tokens a side, one is always computed, each in its turn (>= 2): no place is left "
        "alone for long.",
    )
    neighbor_update: float = _option(
        0.0,
        "Tokens that are not computed take this share, in [0, 1], of what the forecast missed at their computed "
        "neighbours (3 x 3).",
    )
    text_reuse: bool = _option(
        False,
        "Text tokens of joint attention are computed in dense steps only; region steps attend to their last keys and "
        "values. Stable Diffusion 3, FLUX.1, FLUX.2, Qwen-Image, CogView, CogVideoX and others (`ras-dit models`).",
    )
    reference_reuse: bool = _option(
        False,
        "Tokens of reference pictures (edits) are computed in dense steps only; region steps attend to their last keys "
        "and values. FLUX.1 Kontext, FLUX.2, Qwen-Image-Edit and -Layered, JoyImage Edit.",
    )
    forecast_below: float = _option(
        1.0,
        "Forecasts (of noise, and of keys and values) extrapolate below this noise level only, in (0, 1]; above it, "
        "where a step says little about the next one, the last value is reused.",
    )
    forecast_reach: float | None = _option(
        1.0,
        "A slope (of noise, or of keys and values) is followed at most this many times the distance of the two values "
        "it was taken from (> 0); None follows it any far.",
    )
    forecast_midpoint: bool = _option(
        False, "Forecast at the middle of the step's sigma interval (Euler schedulers only)."
    )
    solver_order: int = _option(
        1,
        "2 hands the scheduler every token's mean over the step by a line through its last two values (Adams-Bashforth "
        "2), so that an Euler step becomes second order; dense steps too. Euler schedulers only.",
    )
    forecast_fit: tuple[float, ...] = _option(
        (),
        "Four numbers per evaluation that make the forecast of this plan, as `ras_dit.calibrate` fits them to dense "
        "runs of your pipeline. For runs of that length, Euler schedulers only.",
    )
    kv_forecast: float = _option(
        0.0,
        "Damping of a forecast of cached keys and values, linear in sigma, in [0, 1]; 0 reuses them as they are. "
        "Doubles the cache.",
    )
    token_multiple: int | None = _option(
        None,
        "Active tokens per region step are rounded up to a multiple of this (>= 1), so that few shapes occur; None is "
        "64 on grids of 1,024 tokens and more, 1 on smaller ones.",
    )
    kv_cache_dtype: KVCacheDType | None = _option(
        None,
        "Keep keys and values in this type between steps: float8_e4m3fn, float8_e5m2, bfloat16 or float16; None as "
        "computed.",
    )
    kv_cache_device: str | None = _option(
        None, "Keep keys and values on this device between steps: 'cpu' spares GPU memory, at the price of transfers."
    )
    kv_cache_layers: float = _option(
        1.0,
        "Share of the layers that keep keys and values, in (0, 1], spread evenly; in the others computed tokens attend "
        "among themselves (and to the text) on region steps.",
    )
    kernels: Kernels = _option(
        "torch", "Run selection, forecast and the K/V merge by Triton kernels: 'triton' (CUDA; extra 'kernels')."
    )
    static_memory: bool = _option(
        False,
        "Keys and values stay at their addresses from run to run until RAS is disabled, as CUDA graphs need "
        "(torch.compile mode 'reduce-overhead'). Without 2 dense steps to warm up (3 with kv_forecast), the first run "
        "needs twice their memory under CUDA graphs.",
    )
    shared_active_set: bool = _option(
        False,
        "All images of a batch share one active set, chosen by their mean score. Otherwise each has its own; models "
        "whose position tables have no batch dimension then compute one image after the other in region steps.",
    )
    seed: int = _option(0, "Seed of random selection and of round_robin's tie-break.")
    rules: Rules = _option(
        "ras_dit",
        "'reference' is the authors' exact behaviour: `RASConfig.reference(...).save(file)` writes one for --config.",
    )
    skip_num_step: int = _option(0, "Reference rules only: change of the dropped-token count, in tokens.")
    skip_num_step_length: int = _option(0, "Reference rules only: steps between two such changes.")

    def __post_init__(self) -> None:
        for name in ("refresh_steps", "skip_steps", "step_ratios", "forecast_fit"):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                value = (value,)
            if not isinstance(value, (tuple, list)):
                of_what = {"step_ratios": "shares of the tokens", "forecast_fit": "numbers"}
                what = of_what.get(name, "step indices or shares of the run")
                raise ValueError(f"{name}: got {value!r}; allowed: a tuple of {what}.")
            object.__setattr__(self, name, tuple(map(plain_number, value)))
        for option in dataclasses.fields(self):
            object.__setattr__(self, option.name, plain_number(getattr(self, option.name)))
        object.__setattr__(self, "region_of_interest", as_region(self.region_of_interest))
        check(self)

    # ------------------------------------------------------------------ making one

    @classmethod
    def preset(cls, name: str) -> RASConfig:
        """``quality``, ``balanced``, ``fast``, ``regions``, ``regions_fast`` or ``regions_faster``, for runs of
        twenty steps and more (``quality`` and ``regions`` of fifteen: docs/quality.md, "Runs of other lengths").

        The first three compute some steps whole, forecast the others and keep no keys and values. Those with regions
        compute half of the tokens between two whole steps, and keep keys and values for that (`Plan` says how many
        bytes).
        """
        from ras_dit.presets import PRESETS

        if name not in PRESETS:
            raise ValueError(f"preset: got {name!r}; allowed: {', '.join(PRESETS)}.{nearest(name, PRESETS)}")
        return PRESETS[name]

    @classmethod
    def reference(
        cls,
        sample_ratio: float = 0.5,
        start_step: int = 4,
        end_step: int | None = None,
        reset_steps: tuple[int, ...] = (),
        metric: Literal["std", "l2norm"] = "std",
        high_ratio: float = 1.0,
        starvation_scale: float = 0.1,
        skip_num_step: int = 0,
        skip_num_step_length: int = 0,
    ) -> RASConfig:
        """The authors' rules, the wrong sign of their starvation term included; two accidents of their code are not
        copied (docs/architecture.md, "Reference rules").

        Args:
            sample_ratio: share of tokens computed in a region step, in (0, 1].
            start_step: first region step (>= 1).
            end_step: last region step; None means the number of steps of the run. A run longer than this repeats the
                last selection once at ``end_step`` and is dense from there on, as theirs is.
            reset_steps: dense steps inside the run.
            metric: ``std`` or ``l2norm`` over the channels of the step's displacement.
            high_ratio: share of the dropped tokens taken from the high end, in [0, 1]. (At 0 their code drops every
                token; here it drops the low end only.)
            starvation_scale: k in ``metric * exp(k * drop_count)``.
            skip_num_step: tokens by which the dropped count changes every ``skip_num_step_length`` steps.
            skip_num_step_length: see above; both 0 for a constant ratio.

        Source: microsoft/RAS as described in docs/architecture.md, "Reference rules".
        """
        return cls(
            sample_ratio=sample_ratio,
            warmup_steps=start_step,
            refresh_steps=tuple(reset_steps),
            importance=metric,
            forecast_order=0,
            end_step=end_step,
            starvation_scale=starvation_scale,
            high_ratio=high_ratio,
            rules="reference",
            skip_num_step=skip_num_step,
            skip_num_step_length=skip_num_step_length,
        )

    @property
    def has_savings(self) -> bool:
        """Whether any evaluation may compute less than all tokens."""
        if self.step_ratios:
            return min(self.step_ratios) < 1
        return min(self.sample_ratio, self.final_sample_ratio or 1) < 1 or bool(self.skip_steps)

    @property
    def remembers(self) -> bool:
        """Whether noise of one evaluation may go into another."""
        return self.has_savings or self.solver_order == 2

    @property
    def skips(self) -> bool:
        """Whether any evaluation may compute no token at all."""
        return bool(self.skip_steps) or 0 in self.step_ratios

    @property
    def has_regions(self) -> bool:
        """Whether any evaluation may compute some of the tokens."""
        return any(0 < share < 1 for share in self.step_ratios or (self.sample_ratio, self.final_sample_ratio or 1))

    @property
    def dense(self) -> RASConfig:
        """The same with every evaluation over all tokens, and steps as the scheduler takes them."""
        return self.replace(sample_ratio=1.0, final_sample_ratio=None, skip_steps=(), step_ratios=(), solver_order=1)

    @property
    def whole(self) -> RASConfig:
        """`dense`, without what a run or its scheduler may not have."""
        return self.dense.replace(refresh_steps=(), end_step=None, forecast_midpoint=False)

    def replace(self, **changes: Any) -> RASConfig:
        """A copy with some options changed (validated again).

        An option that describes the plan (`sample_ratio`, `refresh_every` ...) takes the place of ``step_ratios``, and
        those that of such options; another plan loses the ``forecast_fit`` of this one.
        """
        if any(name in (*PLAN_OPTIONS, "step_ratios") for name in changes):
            changes = {"forecast_fit": (), **changes}
        if changes.get("step_ratios"):
            changes = {name: getattr(RASConfig(), name) for name in PLAN_OPTIONS} | changes
        elif self.step_ratios and any(name in PLAN_OPTIONS for name in changes):
            changes = {"step_ratios": (), **changes}
        return RASConfig.from_dict({**self.to_dict(), **changes})

    # ------------------------------------------------------------------ dict, JSON, YAML

    def to_dict(self) -> dict[str, Any]:
        """Every option under its name, tuples as lists: what JSON and YAML hold."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> RASConfig:
        """The inverse of `to_dict`; missing options take their defaults; ``error_reset_steps`` means refresh_steps."""
        if not isinstance(options, Mapping):
            raise ValueError(f"RASConfig: got {type(options).__name__}; allowed: a mapping of option names to values.")
        values = dict(options)
        if "error_reset_steps" in values:
            if "refresh_steps" in values:
                raise ValueError("error_reset_steps is another name of refresh_steps: give one of them, not both.")
            values["refresh_steps"] = values.pop("error_reset_steps")
        names = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                hint = nearest(str(key), names)
                raise ValueError(f"RASConfig: got the unknown option {key!r}.{hint} Allowed: {', '.join(names)}.")
        return cls(**values)

    def to_json(self) -> str:
        """Every option, as JSON."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> RASConfig:
        """The inverse of `to_json`.

        Raises:
            ValueError: no JSON, or options that `from_dict` refuses.
        """
        return cls._from_text(text, json.loads, "JSON")

    def to_yaml(self) -> str:
        """Every option, as YAML."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str) -> RASConfig:
        """The inverse of `to_yaml`; errors as of `from_json`."""
        return cls._from_text(text, yaml.safe_load, "YAML")

    @classmethod
    def _from_text(cls, text: str, parse: Callable[[str], Any], kind: str) -> RASConfig:
        try:
            options = parse(text)
        except (json.JSONDecodeError, yaml.YAMLError) as error:
            raise ValueError(
                f"RASConfig: got text that is no {kind} ({error}); allowed: options and values."
            ) from error
        return cls.from_dict(options)

    def save(self, path: str | Path) -> None:
        """Write a ``.json``, ``.yaml`` or ``.yml`` file (whole or not at all); its folder is made, too."""
        path = Path(path)
        writers = {".json": self.to_json, ".yaml": self.to_yaml, ".yml": self.to_yaml}
        save_text(writers[checked_suffix("config", path, *writers)](), path)

    @classmethod
    def load(cls, path: str | Path) -> RASConfig:
        """Read what `save` wrote; errors name the file."""
        readers = {".json": cls.from_json, ".yaml": cls.from_yaml, ".yml": cls.from_yaml}
        return read_as("config", Path(path), readers)
