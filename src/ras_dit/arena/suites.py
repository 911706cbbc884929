"""Ready-made sets of methods, chosen for runs of 28 steps; for other lengths plans and counts fit themselves in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from ras_dit.arena.methods import Method
from ras_dit.arena.ours import baseline_methods, goal_methods, midway_methods, option_methods, preset_methods
from ras_dit.arena.rivals import NUM_STEPS, cache_methods, dense_methods, paper_methods
from ras_dit.config_checks import nearest
from ras_dit.schedule import is_euler

SUITES: dict[str, Callable[[int], list[Method]]] = {
    "dense": dense_methods,
    "paper": paper_methods,
    "baselines": baseline_methods,
    "caches": cache_methods,
    "goals": goal_methods,
    "midway": midway_methods,
    "presets": preset_methods,
    "options": option_methods,
}


def chosen(methods: Sequence[Method], names: Collection[str]) -> list[Method]:
    """Those of these names, in their own order.

    Raises:
        ValueError: a name that none of them has.
    """
    known = [method.name for method in methods]
    for name in names:
        if name not in known:
            raise ValueError(f"--only: got {name!r}; allowed: the {len(known)} names of --list.{nearest(name, known)}")
    return [method for method in methods if method.name in names]


def within(methods: Sequence[Method], budgets: Sequence[float]) -> list[Method]:
    """Those that take about as many token-steps as one of the budgets (a tenth more or less), and those of which only
    the run tells.

    Args:
        methods: of a run.
        budgets: in token-steps T.

    Raises:
        ValueError: a budget that is none.
    """
    for budget in budgets:
        if not 0 < budget < float("inf"):
            raise ValueError(f"--budget: got {budget:g}; allowed: token-steps above 0, such as 11.5.")
    costs = [method.token_steps for method in methods]
    fits = [cost is None or any(abs(cost - budget) <= 0.1 * budget for budget in budgets) for cost in costs]
    return [method for method, is_kept in zip(methods, fits, strict=True) if is_kept]


def named_for(methods: Sequence[Method], scheduler: Any) -> list[Method]:
    """Methods for a pipeline with this scheduler: where it is no Euler one, dense runs by it have its name."""
    if is_euler(scheduler):
        return list(methods)
    own = type(scheduler).__name__.removesuffix("Scheduler")
    return [replace(m, name=m.name.replace("Euler,", f"{own},")) if m.solver == "euler" else m for m in methods]


def suite(names: str, num_steps: int = NUM_STEPS) -> list[Method]:
    """Methods of suites by name, ``all`` or several with commas, for a dense run of this length.

    Raises:
        ValueError: an unknown name.
    """
    wanted = list(SUITES) if names == "all" else [name.strip() for name in names.split(",")]
    if unknown := [name for name in wanted if name not in SUITES]:
        raise ValueError(f"suite: got {unknown[0]!r}; allowed: all, {', '.join(SUITES)}, or several with commas.")
    found = [method for name in wanted for method in SUITES[name](num_steps)]
    return list({method.name: method for method in reversed(found)}.values())[::-1]  # in short runs some fall together
