"""What RAS has to beat: fewer steps, the authors' settings, and step caches by others."""

from __future__ import annotations

from itertools import product
from typing import Any

from ras_dit.arena.methods import Method, Solver, StepCache
from ras_dit.config import RASConfig

NUM_STEPS = 28
RATIOS = (0.75, 0.5, 0.25, 0.125)
SHORT_RUNS = (15, 10, 7)


def scaled(count: float, num_steps: int) -> int:
    """What ``count`` of 28 steps is in a run of so many, at least 1."""
    return max(1, round(count / NUM_STEPS * num_steps))


def dense_methods(num_steps: int = NUM_STEPS) -> list[Method]:
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
        for steps in _counts((20, 17, 14, 12, 9, 7, 6), num_steps)
    ]
    even: tuple[tuple[Solver, str], ...] = (("euler-even", "Euler"), ("ab2-even", "AB2"))
    found += [
        Method(f"{name}, {steps} even steps", "dense", steps, solver)
        for solver, name in even
        for steps in _counts((17, 12, 9, 7, 6), num_steps)
    ]
    heun = [Method(f"Heun, {steps} steps", "dense", steps, "heun") for steps in _counts((9, 6, 4), num_steps)]
    return [*found, *heun]


def _counts(of_28: tuple[int, ...], num_steps: int) -> list[int]:
    """Step counts of a run of another length, largest first; those that fall together once."""
    return sorted({scaled(count, num_steps) for count in of_28}, reverse=True)


def paper_methods(num_steps: int = NUM_STEPS) -> list[Method]:
    """The authors' settings, as their code runs them, and with the ``starvation_scale`` that their script asks for (and
    their code never applies); dense resets stand where those of 28 steps would, if that is after the warm-up."""
    found = []
    for steps in (num_steps, *(short for short in SHORT_RUNS if short < num_steps)):
        resets = tuple(sorted({scaled(at, steps) for at in (12, 20)} - set(range(5)))) if steps > 10 else ()
        for ratio, (scale, suffix) in product(RATIOS, ((0.1, ""), (1.0, ", starvation 1"))):
            config = RASConfig.reference(ratio, reset_steps=resets, high_ratio=0.3, starvation_scale=scale)
            found.append(Method(f"authors, {ratio}, {steps} steps{suffix}", "reference", steps, config=config))
    return found


_OF_ALL = " of attention and MLP"
TAYLORSEER: dict[str, dict[str, Any]] = {
    "": {},
    _OF_ALL: {"cache_identifiers": [r"^\w*(blocks|layers)\.\d+\.(attn\d?|ff|ff_context|ffn|mlp|feed_forward)$"]},
    " lite": {"use_lite_mode": True},
}
"""What it predicts: diffusers' default is the output of attention alone; its authors' (arXiv 2503.06923) that of every
attention and MLP; diffusers' lite mode that of the whole transformer."""


def cache_methods(num_steps: int = NUM_STEPS) -> list[Method]:
    """Step caches of diffusers and cache-dit, over their thresholds."""
    caches = _first_block() | _taylorseer() | _magcache() | _attention_broadcast() | _fastercache() | _dbcache()
    return [Method(name, "cache", num_steps, cache=cache) for name, cache in caches.items()]


def _first_block() -> dict[str, StepCache]:
    return {
        f"FirstBlockCache {threshold}": StepCache("first_block", {"threshold": threshold})
        for threshold in (0.05, 0.1, 0.2, 0.35)
    }


def _taylorseer() -> dict[str, StepCache]:
    return {
        f"TaylorSeer{name} order {order}, every {interval}": StepCache(
            "taylorseer", {"cache_interval": interval, "max_order": order} | options
        )
        for name, options in TAYLORSEER.items()
        for order in (1, 2)
        for interval in (2, 3, 4, *((6, 9) if name == _OF_ALL else ()))
    }


def _magcache() -> dict[str, StepCache]:
    found = {
        f"MagCache {threshold}": StepCache("magcache", {"threshold": threshold}) for threshold in (0.06, 0.12, 0.24)
    }
    for skipped in (5, 8):  # by default no more than 3 steps in a row, and none in the first fifth of a run
        longer: dict[str, float] = {"threshold": 0.5, "max_skip_steps": skipped}
        found[f"MagCache 0.5, up to {skipped} skipped"] = StepCache("magcache", longer)
        earlier = longer | {"threshold": 1.0, "retention_ratio": 0.1}
        found[f"MagCache 1, up to {skipped} skipped, in the first fifth too"] = StepCache("magcache", earlier)
    return found


def _attention_broadcast() -> dict[str, StepCache]:
    return {
        f"Pyramid attention broadcast, every {interval}": StepCache(
            "pyramid",
            {"spatial_attention_block_skip_range": interval, "spatial_attention_timestep_skip_range": (100, 930)},
        )
        for interval in (2, 4)
    }


def _fastercache() -> dict[str, StepCache]:
    batched = ["hidden_states", "encoder_hidden_states", "timestep", "pooled_projections"]
    options: dict[str, Any] = {
        "spatial_attention_timestep_skip_range": (-1, 930),
        "unconditional_batch_timestep_skip_range": (-1, 930),
        "tensor_format": "BCHW",
        "_unconditional_conditional_input_kwargs_identifiers": batched,
    }
    return {
        f"FasterCache, every {interval}": StepCache("faster", {"unconditional_batch_skip_range": interval} | options)
        for interval in (2, 5)
    }


def _dbcache() -> dict[str, StepCache]:
    found = {}
    for threshold in (0.08, 0.16, 0.32):
        options: dict[str, float] = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "max_warmup_steps": 4}
        options |= {"residual_diff_threshold": threshold}
        found[f"DBCache {threshold}"] = StepCache("dbcache", options)
        found[f"DBCache {threshold} with TaylorSeer"] = StepCache("dbcache", options | {"taylorseer_order": 1})
    return found
