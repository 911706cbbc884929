"""What is searched: options of RASConfig with their ranges, and configs known to be good that are tried first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ras_dit.config import RASConfig
from ras_dit.config_checks import PLAN_OPTIONS
from ras_dit.plan import build_plan
from ras_dit.presets import PRESETS
from ras_dit.tune.plans import config_of_ratios, ratios_of
from ras_dit.tune.shape import FROM_STEP, GROWTHS, MAX_BETWEEN, MAX_TAIL, Shape

if TYPE_CHECKING:
    from optuna.trial import Trial

Chosen = Mapping[str, Any]
"""Parameters chosen so far: a knob's name -> its value."""


@dataclass(frozen=True)
class Run:
    """What ranges depend on.

    Attributes:
        num_steps: transformer evaluations.
        num_tokens: image tokens.
        is_euler: the scheduler takes plain Euler steps, so that second-order ones can be had.
        has_text_reuse: region steps of this model can do without computing text (`RASConfig.text_reuse`).
    """

    num_steps: int
    num_tokens: int
    is_euler: bool
    has_text_reuse: bool = False


@dataclass(frozen=True)
class Whole:
    """Whole numbers from low to high."""

    low: int
    high: int
    is_log: bool = False

    def suggest(self, trial: Trial, name: str) -> int:
        return trial.suggest_int(name, self.low, max(self.low, self.high), log=self.is_log)

    def nearest(self, value: float) -> int:
        return min(max(self.low, self.high), max(self.low, round(value)))


@dataclass(frozen=True)
class Real:
    """Numbers from low to high."""

    low: float
    high: float
    is_log: bool = False
    step: float | None = None

    def suggest(self, trial: Trial, name: str) -> float:
        return round(trial.suggest_float(name, self.low, self.high, log=self.is_log, step=self.step), 4)

    def nearest(self, value: float) -> float:
        value = min(self.high, max(self.low, value))
        return value if self.step is None else round(self.low + round((value - self.low) / self.step) * self.step, 6)


@dataclass(frozen=True)
class Choice:
    """One of these."""

    values: tuple[Any, ...]

    def suggest(self, trial: Trial, name: str) -> Any:
        return trial.suggest_categorical(name, self.values)

    def nearest(self, value: Any) -> Any:
        return value if value in self.values else self.values[0]


@dataclass(frozen=True)
class Knob:
    """One parameter that is searched.

    Attributes:
        name: an option of RASConfig, or a number of the plan's `Shape`.
        values: its range in a run.
        is_used: whether it matters, given what knobs before it chose; it is not asked for otherwise.
    """

    name: str
    values: Callable[[Run], Whole | Real | Choice]
    is_used: Callable[[Chosen, Run], bool] = lambda chosen, run: True

    @property
    def option(self) -> str:
        """What it is, or belongs to, in RASConfig."""
        return "step_ratios" if self in SHAPE_KNOBS else self.name

    def parameter(self, config: RASConfig, run: Run) -> Any:
        """Its value in a config (of a plan: in the shape nearest to it)."""
        if self not in SHAPE_KNOBS:
            return getattr(config, self.name)
        return getattr(Shape.nearest(ratios_of(build_plan(config, run.num_steps, run.num_tokens))), self.name)


def _has_regions(chosen: Chosen, run: Run) -> bool:
    return bool(chosen["region_from"] < 1)


def _extrapolates(chosen: Chosen, run: Run) -> bool:
    return bool(chosen["forecast_order"] or chosen.get("kv_forecast"))


SHAPE_KNOBS: tuple[Knob, ...] = (
    Knob("warmup_steps", lambda run: Whole(1, run.num_steps // 2)),
    Knob("gap", lambda run: Whole(2, run.num_steps, is_log=True)),  # as long as the run: no more dense steps
    Knob("gap_growth", lambda run: Real(GROWTHS[0], GROWTHS[-1], step=0.1)),
    Knob("tail", lambda run: Whole(0, MAX_TAIL)),
    Knob("region_from", lambda run: Real(0.0, 1.0, step=FROM_STEP)),  # 1: all steps between are skipped
    Knob("sample_ratio", lambda run: Real(0.02, 0.75, is_log=True), _has_regions),
    Knob("regions_between", lambda run: Choice((None, *range(1, MAX_BETWEEN + 1))), _has_regions),
)
"""The plan, as `Shape` has it; searched as the option ``step_ratios``."""

OPTION_KNOBS: tuple[Knob, ...] = (
    Knob("importance", lambda run: Choice(("error", "std", "l2norm", "round_robin")), _has_regions),
    Knob("forecast_order", lambda run: Choice((0, 1, 2))),
    Knob("forecast_damping", lambda run: Real(0.1, 1.0, step=0.1), lambda chosen, run: bool(chosen["forecast_order"])),
    Knob("kv_forecast", lambda run: Real(0.0, 1.0, step=0.1), _has_regions),
    Knob("forecast_below", lambda run: Real(0.8, 1.0, step=0.01), _extrapolates),
    Knob("solver_order", lambda run: Choice((1, 2)), lambda chosen, run: run.is_euler),
    Knob(
        "text_reuse",
        lambda run: Choice((False, True)),
        lambda chosen, run: run.has_text_reuse and _has_regions(chosen, run),
    ),
)

SPACE: tuple[Knob, ...] = (*SHAPE_KNOBS, *OPTION_KNOBS)
"""Add an option here and it is searched, and can be left out with --without; order matters to `Knob.is_used`."""

_OWN = "the user's own business (memory, compiling, masks)"
_LITTLE = "changed little on the models it was tried on"
UNSEARCHED: Mapping[str, str] = {
    **dict.fromkeys(("token_multiple", "kv_cache_dtype", "kv_cache_device", "kv_cache_layers"), _OWN),
    **dict.fromkeys(("region_of_interest", "seed", "auto", "kernels", "static_memory", "shared_active_set"), _OWN),
    **dict.fromkeys(
        ("score_filter", "anchor_stride", "neighbor_update", "forecast_reach", "forecast_midpoint"), _LITTLE
    ),
    "forecast_fit": "is fitted, not searched: `ras_dit.calibrate`",
    "refresh_tolerance": "makes the cost another for every picture, which a plan says beforehand",
    "reference_reuse": "matters to edits only, which have more than a prompt",
    **dict.fromkeys(("starvation_scale", "high_ratio"), "matters to the paper's importance only"),
    **dict.fromkeys(("rules", "skip_num_step", "skip_num_step_length"), "of the reference rules"),
}
"""Options that are never searched but taken from the base, and why."""


@dataclass(frozen=True)
class Space:
    """The knobs of a run.

    Args:
        run: what is painted.
        base: holds all options that are not searched.
        without: options of `SPACE` that keep the base's value.
    """

    run: Run
    base: RASConfig
    without: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        known = list(dict.fromkeys(knob.option for knob in SPACE))
        if unknown := sorted(self.without - set(known)):
            raise ValueError(f"--without: got {', '.join(unknown)}; allowed: {', '.join(known)}.")
        if self.base.rules != "ras_dit":
            raise ValueError("--config: got reference rules, which leave nothing to tune; give a config without them.")

    @property
    def knobs(self) -> list[Knob]:
        keeps_text = self.base.kv_cache_layers == 1  # in all layers, as its reuse demands
        return [
            knob for knob in SPACE if knob.option not in self.without and (keeps_text or knob.option != "text_reuse")
        ]

    @property
    def kept(self) -> dict[str, Any]:
        """Options that are the base's in every config."""
        names = {*self.without, *UNSEARCHED, *(PLAN_OPTIONS if "step_ratios" in self.without else ())}
        return {name: value for name, value in self.base.to_dict().items() if name in names}

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """Ask a trial for the value of every knob that is used."""
        chosen: dict[str, Any] = {}
        for knob in self.knobs:
            if knob.is_used(self._known(chosen), self.run):
                chosen[knob.name] = knob.values(self.run).suggest(trial, knob.name)
        return chosen

    def config(self, chosen: Chosen) -> RASConfig:
        """The config of parameters.

        Raises:
            ValueError: they do not go with the base's options.
        """
        config = self.base.replace(**{knob.name: chosen[knob.name] for knob in OPTION_KNOBS if knob.name in chosen})
        if "step_ratios" in self.without:
            return config
        shape = Shape(**{knob.name: chosen[knob.name] for knob in SHAPE_KNOBS if knob.name in chosen})
        return config_of_ratios(shape.ratios(self.run.num_steps), config)

    def parameters(self, config: RASConfig) -> dict[str, Any]:
        """The parameters nearest to a config."""
        chosen: dict[str, Any] = {}
        for knob in self.knobs:
            if knob.is_used(self._known(chosen), self.run):
                chosen[knob.name] = knob.values(self.run).nearest(knob.parameter(config, self.run))
        return chosen

    def _known(self, chosen: Chosen) -> dict[str, Any]:
        """What was chosen, and the base's parameters of knobs that are left out."""
        kept = {knob.name: knob.parameter(self.base, self.run) for knob in SPACE if knob.option in self.without}
        return {**kept, **chosen}


def known_good(space: Space) -> dict[str, RASConfig]:
    """Configs to try first, by name: the base, the presets (two in second order too), half of the tokens midway between
    evenly spaced dense steps."""
    own = "defaults" if space.base == RASConfig() else "base"
    seeds = {own: space.base, **{f"preset {name}": config for name, config in PRESETS.items()}}
    for every in (4, 6):
        plan = Shape(2, every, sample_ratio=0.5, regions_between=1).ratios(space.run.num_steps)
        midway = PRESETS["regions"].replace(step_ratios=plan)
        seeds[f"dense every {every}, half of the tokens midway"] = midway
    if space.run.is_euler:
        for name in ("balanced", "regions"):
            seeds[f"preset {name}, second order"] = PRESETS[name].replace(solver_order=2)
    distinct: dict[RASConfig, str] = {}
    for name, config in seeds.items():
        try:
            distinct.setdefault(config.replace(**space.kept), name)
        except ValueError:  # does not go with the base
            continue
    return {name: config for config, name in distinct.items()}
