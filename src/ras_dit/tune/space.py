"""What is searched: options of RASConfig with their ranges, and configs known to be good that are tried first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ras_dit.config import PRESETS, RASConfig
from ras_dit.plan import build_plan

if TYPE_CHECKING:
    from optuna.trial import Trial

Chosen = Mapping[str, Any]
"""Parameters chosen so far: a knob's option -> its value."""


@dataclass(frozen=True)
class Run:
    """What ranges depend on.

    Attributes:
        num_steps: transformer evaluations.
        num_tokens: image tokens.
        is_euler: the scheduler takes plain Euler steps, so that second-order ones can be had.
    """

    num_steps: int
    num_tokens: int
    is_euler: bool


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
    """One option that is searched.

    Attributes:
        option: of RASConfig.
        values: its range in a run.
        is_used: whether it matters, given what knobs before it chose; it is not asked for otherwise.
        to_option: the option's value, where the parameter is something else.
        from_config: the parameter's value of a config, where it is something else.
    """

    option: str
    values: Callable[[Run], Whole | Real | Choice]
    is_used: Callable[[Chosen, Run], bool] = lambda chosen, run: True
    to_option: Callable[[Any, Chosen, Run], Any] = lambda value, chosen, run: value
    from_config: Callable[[RASConfig, Run], Any] | None = None

    def parameter(self, config: RASConfig, run: Run) -> Any:
        """Its value in a config."""
        return getattr(config, self.option) if self.from_config is None else self.from_config(config, run)


def _has_regions(chosen: Chosen, run: Run) -> bool:
    return chosen.get("skip_steps") != "all"


def _skipped(pattern: str, chosen: Chosen, run: Run) -> tuple[int, ...]:
    """Steps between the dense ones that are skipped: none, every other one from the first on, or all."""
    warmup, every = chosen.get("warmup_steps", 1), chosen.get("refresh_every", run.num_steps)
    between = {i: (i - warmup) % every for i in range(warmup, run.num_steps) if (i - warmup) % every != every - 1}
    return tuple(i for i, place in between.items() if pattern == "all" or (pattern == "alternate" and place % 2 == 0))


def _num_warmup(config: RASConfig, run: Run) -> int:
    kinds = [step.kind for step in build_plan(config, run.num_steps, run.num_tokens)]
    return next((index for index, kind in enumerate(kinds) if kind != "dense"), run.num_steps)


def _skip_pattern(config: RASConfig, run: Run) -> str:
    kinds = [step.kind for step in build_plan(config, run.num_steps, run.num_tokens)]
    return "none" if "skip" not in kinds else "alternate" if "region" in kinds else "all"


SPACE: tuple[Knob, ...] = (
    Knob("warmup_steps", lambda run: Whole(1, run.num_steps // 2), from_config=_num_warmup),
    Knob(
        "refresh_every",
        lambda run: Whole(2, max(2, run.num_steps), is_log=True),  # as long as the run: never
        from_config=lambda config, run: config.refresh_every or run.num_steps,
    ),
    Knob(
        "skip_steps",
        lambda run: Choice(("none", "alternate", "all")),
        to_option=_skipped,
        from_config=_skip_pattern,
    ),
    Knob("sample_ratio", lambda run: Real(0.02, 0.75, is_log=True), _has_regions),
    Knob(
        "final_sample_ratio",
        lambda run: Real(0.25, 4.0, is_log=True),  # times sample_ratio
        _has_regions,
        to_option=lambda factor, chosen, run: round(min(1.0, factor * chosen.get("sample_ratio", 0.25)), 4),
        from_config=lambda config, run: (config.final_sample_ratio or config.sample_ratio) / config.sample_ratio,
    ),
    Knob("importance", lambda run: Choice(("error", "std", "l2norm", "round_robin")), _has_regions),
    Knob("forecast_order", lambda run: Choice((0, 1, 2))),
    Knob("forecast_damping", lambda run: Real(0.1, 1.0, step=0.1), lambda chosen, run: bool(chosen["forecast_order"])),
    Knob("solver_order", lambda run: Choice((1, 2)), lambda chosen, run: run.is_euler),
    Knob("kv_forecast", lambda run: Real(0.0, 1.0, step=0.1), _has_regions),
)
"""Add an option here and it is searched, and can be left out with --without; order matters to `Knob.is_used`."""


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
        known = [knob.option for knob in SPACE]
        if unknown := sorted(self.without - set(known)):
            raise ValueError(f"--without: got {', '.join(unknown)}; allowed: {', '.join(known)}.")
        if self.base.rules != "ras_dit":
            raise ValueError("--config: got reference rules, which leave nothing to tune; give a config without them.")

    @property
    def knobs(self) -> list[Knob]:
        return [knob for knob in SPACE if knob.option not in self.without]

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """Ask a trial for the value of every knob that is used."""
        chosen: dict[str, Any] = {}
        for knob in self.knobs:
            if knob.is_used(self._known(chosen), self.run):
                chosen[knob.option] = knob.values(self.run).suggest(trial, knob.option)
        return chosen

    def config(self, chosen: Chosen) -> RASConfig:
        """The config of parameters.

        Raises:
            ValueError: they do not go with the base's options.
        """
        options: dict[str, Any] = {} if "refresh_every" in self.without else {"refresh_steps": (), "end_step": None}
        for knob in self.knobs:
            if knob.option in chosen:
                options[knob.option] = knob.to_option(chosen[knob.option], self._known(chosen), self.run)
        return self.base.replace(**options)

    def parameters(self, config: RASConfig) -> dict[str, Any]:
        """The parameters nearest to a config."""
        chosen: dict[str, Any] = {}
        for knob in self.knobs:
            if knob.is_used(self._known(chosen), self.run):
                chosen[knob.option] = knob.values(self.run).nearest(knob.parameter(config, self.run))
        return chosen

    def _known(self, chosen: Chosen) -> dict[str, Any]:
        """What was chosen, and the base's parameters of knobs that are left out."""
        kept = {knob.option: knob.parameter(self.base, self.run) for knob in SPACE if knob.option in self.without}
        return {**kept, **chosen}


UNSEARCHED = ("token_multiple", "kv_cache_dtype", "kv_cache_device", "kv_cache_layers", "region_of_interest", "seed")
"""Options that are the user's own business (memory, compiling, masks): never searched, taken from the base."""


def known_good(space: Space) -> dict[str, RASConfig]:
    """Configs to try first, by name: the base, the presets, and dense steps at regular distances with lean regions."""
    lean = {"warmup_steps": 2, "sample_ratio": 0.1, "kv_forecast": 0.8}
    second = 2 if space.run.is_euler else 1
    found: dict[str, Mapping[str, Any]] = {
        "lean regions, dense every 2": {**lean, "refresh_every": 2},
        "lean regions, dense every 3": {**lean, "refresh_every": 3},
        "lean regions, dense every 3, second order": {**lean, "refresh_every": 3, "solver_order": second},
        "lean regions, dense every 4, second order": {**lean, "refresh_every": 4, "solver_order": second},
    }
    # of the others' options, those that the base decides stay the base's
    fixed = {name: value for name, value in space.base.to_dict().items() if name in space.without or name in UNSEARCHED}
    own = "defaults" if space.base == RASConfig() else "base"
    seeds = {own: space.base, **{f"preset {name}": config for name, config in PRESETS.items()}}
    seeds |= {name: RASConfig.from_dict(options) for name, options in found.items()}
    distinct: dict[RASConfig, str] = {}
    for name, config in seeds.items():
        try:
            distinct.setdefault(config.replace(**fixed), name)
        except ValueError:  # does not go with the base
            continue
    return {name: config for config, name in distinct.items()}
