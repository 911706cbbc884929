"""Ready-made sets of methods."""

from __future__ import annotations

from collections.abc import Callable

from ras_dit.arena.methods import Method, Solver, StepCache
from ras_dit.config import PRESETS, RASConfig

RATIOS = (0.75, 0.5, 0.25, 0.125)
STEPS = (28, 15, 10, 7)


def dense_methods() -> list[Method]:
    """Fewer steps, of first and of second order."""
    solvers: tuple[tuple[Solver, str], ...] = (
        ("euler", "Euler"),
        ("ab2", "AB2"),
        ("unipc", "UniPC 2"),
        ("dpm++", "DPM-Solver++ 2M"),
    )
    found = [
        Method(f"{name}, {steps} steps", "dense", steps, solver)
        for solver, name in solvers
        for steps in (20, 17, 14, 12, 9, 6)
    ]
    return [*found, *(Method(f"Heun, {steps} steps", "dense", steps, "heun") for steps in (9, 6, 4))]


def paper_methods() -> list[Method]:
    """The authors' settings; dense resets stand where those of 28 steps would, if that is after the warm-up."""
    found = []
    for steps in STEPS:
        resets = (
            tuple(sorted({round(share * steps) for share in (12 / 28, 20 / 28)} - set(range(5)))) if steps > 10 else ()
        )
        for ratio in RATIOS:
            config = RASConfig.reference(ratio, reset_steps=resets, high_ratio=0.3, starvation_scale=1.0)
            found.append(Method(f"authors, {ratio}, {steps} steps", "reference", steps, config=config))
    return found


def baseline_methods() -> list[Method]:
    """What a selection has to beat: random tokens and the oldest first, on the authors' dense steps."""
    return [
        Method(
            f"{importance}, {ratio}",
            "baseline",
            config=RASConfig(sample_ratio=ratio, refresh_steps=(12, 20), importance=importance),  # type: ignore[arg-type]
        )
        for importance in ("random", "round_robin")
        for ratio in (0.5, 0.25, 0.125)
    ]


def cache_methods() -> list[Method]:
    """Step caches of diffusers and cache-dit, over their thresholds."""
    found = [
        Method(f"FirstBlockCache {threshold}", "cache", cache=StepCache("first_block", {"threshold": threshold}))
        for threshold in (0.05, 0.1, 0.2, 0.35)
    ]
    found += [
        Method(
            f"TaylorSeer order {order}, every {interval}",
            "cache",
            cache=StepCache("taylorseer", {"cache_interval": interval, "max_order": order}),
        )
        for order in (1, 2)
        for interval in (2, 3, 4)
    ]
    found += [
        Method(f"MagCache {threshold}", "cache", cache=StepCache("magcache", {"threshold": threshold}))
        for threshold in (0.06, 0.12, 0.24)
    ]
    for threshold in (0.08, 0.16, 0.32):
        options: dict[str, float] = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "max_warmup_steps": 4}
        options |= {"residual_diff_threshold": threshold}
        found.append(Method(f"DBCache {threshold}", "cache", cache=StepCache("dbcache", options)))
        seer = StepCache("dbcache", options | {"taylorseer_order": 1})
        found.append(Method(f"DBCache {threshold} with TaylorSeer", "cache", cache=seer))
    return found


def goal_methods() -> list[Method]:
    """Ours at T = 17, 11.5, 8.75 and 6 of 28 steps: two dense steps, then every k-th, lean region steps between."""
    found = []
    for token_steps, periods in {17.0: (2, 3), 11.5: (3, 4), 8.75: (4, 5), 6.0: (7, 9)}.items():
        for every in periods:
            num_dense = 2 + (28 - 2) // every
            ratio = (token_steps - num_dense) / (28 - num_dense)
            for order in (1, 2):
                config = RASConfig(
                    sample_ratio=round(ratio, 4),
                    warmup_steps=2,
                    refresh_every=every,
                    solver_order=order,
                    kv_forecast=0.8,
                )
                name = f"RAS, T {token_steps:g}, every {every}, order {order}"
                found.append(Method(name, "ras", config=config))
    return found


def preset_methods() -> list[Method]:
    """The presets."""
    return [Method(f"preset {name}", "ras", config=config) for name, config in PRESETS.items()]


def option_methods() -> list[Method]:
    """The ablation: one option changed at a time, at T of about 11.5."""
    base = RASConfig(sample_ratio=0.083, warmup_steps=2, refresh_every=3, solver_order=2, kv_forecast=0.8)
    changes: dict[str, dict[str, object]] = {
        "nothing": {},
        "no K/V forecast": {"kv_forecast": 0.0},
        "K/V forecast 0.5": {"kv_forecast": 0.5},
        "K/V forecast 1.0": {"kv_forecast": 1.0},
        "first-order steps": {"solver_order": 1},
        "forecast order 1, damping 0.5": {"forecast_order": 1},
        "forecast order 1, damping 1": {"forecast_order": 1, "forecast_damping": 1.0},
        "forecast order 2, damping 0.5": {"forecast_order": 2},
        "random tokens": {"importance": "random"},
        "oldest tokens first": {"importance": "round_robin"},
        "the paper's std, sign mended": {"importance": "std"},
        "long stretches: dense at 12 and 20": {
            "refresh_every": None,
            "refresh_steps": (12, 20),
            "sample_ratio": 0.25,
            "warmup_steps": 4,
        },
        "skipped steps instead of region steps": {"skip_steps": tuple(i for i in range(2, 28) if (i - 2) % 3 != 2)},
    }
    return [Method(f"ablation: {name}", "ras", config=base.replace(**change)) for name, change in changes.items()]


SUITES: dict[str, Callable[[], list[Method]]] = {
    "dense": dense_methods,
    "paper": paper_methods,
    "baselines": baseline_methods,
    "caches": cache_methods,
    "goals": goal_methods,
    "presets": preset_methods,
    "options": option_methods,
}


def suite(names: str) -> list[Method]:
    """Methods of suites by name, ``all`` or several with commas.

    Raises:
        ValueError: an unknown name.
    """
    wanted = list(SUITES) if names == "all" else [name.strip() for name in names.split(",")]
    if unknown := [name for name in wanted if name not in SUITES]:
        raise ValueError(f"suite: got {unknown[0]!r}; allowed: all, {', '.join(SUITES)}, or several with commas.")
    return [method for name in wanted for method in SUITES[name]()]
