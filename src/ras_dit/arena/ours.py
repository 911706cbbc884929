"""The methods of this package in the arena: plans at some budgets, and what becomes of them with one thing changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ras_dit.arena.methods import Method
from ras_dit.arena.rivals import NUM_STEPS, scaled
from ras_dit.config import RASConfig
from ras_dit.plan import build_plan
from ras_dit.presets import PRESETS, listed

_FORECAST: dict[str, Any] = {
    "solver_order": 2,
    "forecast_order": 1,
    "kv_forecast": 0.8,
}


def _with(ratios: tuple[float, ...], others: Mapping[int, float]) -> tuple[float, ...]:
    """A plan with other shares at some steps."""
    return tuple(others.get(index, ratio) for index, ratio in enumerate(ratios))


_DENSE = (0, 1, 2, 3, 6, 11, 17, 23)  # of the plan that the ablation varies

GOALS: dict[float, RASConfig] = {
    17.0: RASConfig(
        step_ratios=_with(
            listed((0, 1, 2, 3, 4, 7, 9, 11, 13, 15, 19, 21, 23, 26, 27)), {6: 0.5, 17: 0.5, 18: 0.5, 25: 0.5}
        ),
        forecast_damping=0.8,
        **_FORECAST,
    ),
    11.5: RASConfig(step_ratios=listed(_DENSE, 0.203), forecast_below=0.93, **_FORECAST),
    8.75: RASConfig(step_ratios=listed((0, 1, 2, 6, 13, 18, 25), 0.103), **_FORECAST),
    6.0: RASConfig(step_ratios=listed((0, 1, 3, 8, 17), 0.053), forecast_damping=0.3, forecast_below=0.93, **_FORECAST),
}
"""Plans at equal compute with the paper's ratios, found by search on pictures that are not in the arena."""

MIDWAY: dict[float, RASConfig] = {
    17.0: PRESETS["regions"].replace(
        step_ratios=listed((0, 1, 2, 3, 4, 5, 7, 9, 12, 15, 18, 21, 23, 26), 0.5, (10, 13, 16, 19, 24, 25))
    ),
    11.5: PRESETS["regions"],
    8.75: PRESETS["regions_fast"],
    7.0: PRESETS["regions_faster"],
    6.0: PRESETS["regions_faster"].replace(step_ratios=listed((0, 1, 2, 5), 0.5, (11, 16, 18, 24)), forecast_below=0.9),
}
"""Plans whose region steps stand midway between dense ones, all others skipped; found by search likewise."""

SKIPPING: dict[float, tuple[int, ...]] = {
    17.0: (0, 1, 2, 3, 4, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 26),
    11.5: (0, 1, 2, 3, 5, 8, 12, 16, 20, 23, 25),
    8.75: (0, 1, 2, 4, 6, 13, 18, 23),
    6.0: (0, 1, 3, 6, 15, 22),
}
"""Dense steps of plans that skip all others."""

OF_PRESETS = "of presets: "  # begins the names of presets with one option changed


def baseline_methods(num_steps: int = NUM_STEPS) -> list[Method]:
    """What a selection has to beat: random tokens and the oldest first, on the authors' dense steps. Those alone are
    six, so that at T = 6 of 28 there are random tokens on our own plan."""
    resets = tuple(sorted({scaled(at, num_steps) for at in (12, 20)} & set(range(num_steps))))
    found = [
        Method(
            f"{importance}, {ratio}",
            "baseline",
            num_steps,
            config=RASConfig(sample_ratio=ratio, refresh_steps=resets, importance=importance),  # type: ignore[arg-type]
        )
        for importance in ("random", "round_robin")
        for ratio in (0.5, 0.25, 0.125)
    ]
    for order in (1, 2):
        config = GOALS[6.0].replace(importance="random", solver_order=order)
        name = f"random, T {_budget(6.0, num_steps):g}, order {order}"
        found.append(Method(name, "baseline", num_steps, config=config))
    return found


def goal_methods(num_steps: int = NUM_STEPS) -> list[Method]:
    """Ours at T = 17, 11.5, 8.75 and 6 of 28 steps (of other lengths: as large a share), and what becomes of it
    without regions: skipped steps instead of region steps, and a dense solver that visits the dense steps alone."""
    found = []
    for token_steps, config in GOALS.items():
        for order in (1, 2):
            name = f"regions in every step, T {_budget(token_steps, num_steps):g}, order {order}"
            found.append(Method(name, "ras", num_steps, config=config.replace(solver_order=order)))
    for token_steps, of_28 in SKIPPING.items():
        config = GOALS[token_steps].replace(step_ratios=listed(of_28), kv_forecast=0.0)
        dense = tuple(step.index for step in build_plan(config, num_steps, 1).steps if step.kind == "dense")
        for order in (1, 2):
            name = f"skipping only, T {len(dense)}, order {order}"
            found.append(Method(name, "ras", num_steps, config=config.replace(solver_order=order)))
        found.append(Method(f"AB2 on those {len(dense)} steps", "dense", num_steps, "ab2", visited=dense))
    for tolerance in (0.08, 0.12, 0.2):
        config = GOALS[11.5].replace(step_ratios=listed((0, 1, 2, 3, 6), 0.21), refresh_tolerance=tolerance)
        found.append(Method(f"RAS, tolerance {tolerance}", "ras", num_steps, config=config))
    return found


def _budget(token_steps: float, num_steps: int) -> float:
    """T of a goal in a run of another length, to a quarter."""
    return round(token_steps / NUM_STEPS * num_steps * 4) / 4


def preset_methods(num_steps: int = NUM_STEPS) -> list[Method]:
    """The presets, and those with a K/V forecast without it."""
    found = [Method(f"preset {name}", "ras", num_steps, config=config) for name, config in PRESETS.items()]
    for name, config in PRESETS.items():
        if config.kv_forecast:
            plain = config.replace(kv_forecast=0.0)
            found.append(Method(f"{name}, no K/V forecast", "ras", num_steps, config=plain))
    return found


def option_methods(num_steps: int = NUM_STEPS) -> list[Method]:
    """The ablation: one option changed at a time, at T of about 11.5."""
    base = GOALS[11.5]
    changes: dict[str, dict[str, object]] = {
        "random tokens": {"importance": "random"},
        "oldest tokens first": {"importance": "round_robin"},
        "the paper's std, sign mended": {"importance": "std"},
        "the paper's l2norm, sign mended": {"importance": "l2norm"},
        "blurred score": {"score_filter": "blur"},
        "dilated score": {"score_filter": "dilate"},
        "anchors, one in 4 x 4": {"anchor_stride": 4},
        "neighbours' update, 0.5": {"neighbor_update": 0.5},
        "text reuse": {"text_reuse": True},
        "no K/V forecast": {"kv_forecast": 0.0},
        "K/V forecast 0.5": {"kv_forecast": 0.5},
        "K/V forecast 1.0": {"kv_forecast": 1.0},
        "first-order steps": {"solver_order": 1},
        "no forecast of noise": {"forecast_order": 0},
        "forecast damping 0.3": {"forecast_damping": 0.3},
        "forecast damping 1": {"forecast_damping": 1.0},
        "forecast order 2": {"forecast_order": 2},
        "forecasts from the beginning": {"forecast_below": 1.0},
        "forecasts of any reach": {"forecast_reach": None},
        "skipped steps instead of region steps": {"step_ratios": listed(_DENSE)},
        "region steps from step 4 on": {"step_ratios": listed(_DENSE, 0.175, range(4, 28))},
        "every third step dense": {"step_ratios": listed((0, 1, *range(4, 28, 3)), 0.083, range(2, 28))},
        "the authors' dense steps": {"step_ratios": listed((0, 1, 2, 3, 12, 20), 0.25, range(4, 28))},
    }
    return _one_changed("ablation", base, changes, num_steps) + _preset_options(num_steps)


def _preset_options(num_steps: int) -> list[Method]:
    """Every preset with one option changed (but `regions`, the plan that `midway_methods` varies)."""
    found = []
    for name, config in ((name, config) for name, config in PRESETS.items() if config != MIDWAY[11.5]):
        changes: dict[str, dict[str, object]] = {
            "no forecast of noise": {"forecast_order": 0},
            "forecast damping 1": {"forecast_damping": 1.0},
            "forecasts from the beginning": {"forecast_below": 1.0},
            "forecasts below 0.93 only": {"forecast_below": min(0.93, config.forecast_below)},
            "forecasts of any reach": {"forecast_reach": None},
            "no K/V forecast": {"kv_forecast": 0.0},
            "region steps skipped": {"step_ratios": tuple(float(ratio == 1) for ratio in config.step_ratios)},
        }
        for what, change in changes.items():
            if (changed := config.replace(**change)) != config:
                found.append(Method(f"{OF_PRESETS}{name}, {what}", "ras", num_steps, config=changed))
    return found


def _one_changed(
    prefix: str, base: RASConfig, changes: Mapping[str, Mapping[str, object]], num_steps: int
) -> list[Method]:
    """A config as it is, and with one thing changed at a time."""
    return [
        Method(f"{prefix}: {name}", "ras", num_steps, config=base.replace(**change))
        for name, change in {"nothing": {}, **changes}.items()
    ]


def midway_methods(num_steps: int = NUM_STEPS) -> list[Method]:
    """Region steps midway between dense ones, and one thing changed at a time in the plan of T = 11.5."""
    found = []
    for token_steps, config in MIDWAY.items():
        for order in (1, 2):
            name = f"regions midway, T {_budget(token_steps, num_steps):g}, order {order}"
            found.append(Method(name, "ras", num_steps, config=config.replace(solver_order=order)))
    base = MIDWAY[11.5]
    dense, regions = ([i for i, ratio in enumerate(base.step_ratios) if ratio == share] for share in (1, 0.5))
    changes: dict[str, dict[str, object]] = {
        "all steps between are region steps": {"step_ratios": listed(dense, 0.132, range(5, 28))},
        "twice as many region steps, half as large": {
            "step_ratios": listed(dense, 0.25, regions=(6, 7, 10, 12, 16, 18, 22, 23, 24, 25))
        },
        "region steps skipped": {"step_ratios": listed(dense)},
        "region steps dense": {"step_ratios": listed((*dense, *regions))},
        "random tokens": {"importance": "random"},
        "oldest tokens first": {"importance": "round_robin"},
        "no K/V forecast": {"kv_forecast": 0.0},
        "K/V forecast 0.5": {"kv_forecast": 0.5},
        "K/V forecast 1.0": {"kv_forecast": 1.0},
        "no forecast of noise": {"forecast_order": 0},
        "forecast damping 1": {"forecast_damping": 1.0},
        "forecasts below 0.93 only": {"forecast_below": 0.93},
        "text reuse": {"text_reuse": True},
        "cache in float8_e4m3fn": {"kv_cache_dtype": "float8_e4m3fn"},
    }
    return found + _one_changed("midway", base, changes, num_steps)
