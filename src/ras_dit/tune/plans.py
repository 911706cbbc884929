"""Plans as shares of tokens, one per evaluation, and the small changes that a plan search tries.

A plan is a tuple of numbers: 1 computes all tokens (a dense step), 0 none (a skipped one), anything between a region.
The moves know nothing else. `config_of_ratios` alone turns a plan into options.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TypeAlias

from ras_dit.config import RASConfig
from ras_dit.plan import Plan

Ratios: TypeAlias = tuple[float, ...]
Move = Callable[[Ratios, Random], "Ratios | None"]
"""A changed plan, or None where the move does not apply."""

MIN_RATIO, MAX_RATIO = 0.01, 0.95
"""Of a region step: fewer tokens are a skipped step, more are a dense one."""
MAX_TRIES = 50


def check_ratios(ratios: Ratios) -> None:
    """Refuse what is no plan.

    Raises:
        ValueError: no plan: a share outside [0, 1], or a first step that is not dense.
    """
    if not ratios or any(not 0 <= ratio <= 1 for ratio in ratios):
        raise ValueError(f"plan: got {ratios!r}; allowed: one share of the tokens in [0, 1] per evaluation.")
    if ratios[0] != 1:
        raise ValueError(f"plan: got {ratios[0]} for the first evaluation; allowed: 1, there is nothing to reuse yet.")


def ratios_of(plan: Plan) -> Ratios:
    """The share of tokens of every evaluation."""
    return tuple(round(step.num_active / plan.num_tokens, 6) for step in plan)


def config_of_ratios(ratios: Ratios, base: RASConfig) -> RASConfig:
    """Options that run this plan; all that is not of the plan is as in ``base``."""
    check_ratios(ratios)
    return base.replace(step_ratios=ratios)


def _clipped(ratio: float) -> float:
    return min(MAX_RATIO, max(MIN_RATIO, ratio))


def _regions(ratios: Ratios) -> list[int]:
    return [index for index, ratio in enumerate(ratios) if 0 < ratio < 1]


def _usual(ratios: Ratios) -> float:
    """What a step gets that becomes a region step: the middle one of the plan's region ratios."""
    values = sorted(ratios[index] for index in _regions(ratios))
    return values[len(values) // 2] if values else 0.1


def _put(ratios: Ratios, index: int, ratio: float) -> Ratios:
    return (*ratios[:index], ratio, *ratios[index + 1 :])


def _pick(random: Random, indices: list[int]) -> int | None:
    return random.choice(indices) if indices else None


def _later(ratios: Ratios, ratio: float) -> list[int]:
    return [index for index, value in enumerate(ratios) if index and value == ratio]


def shift_dense(ratios: Ratios, random: Random) -> Ratios | None:
    """A dense step changes places with the one before or after it."""
    index = _pick(random, _later(ratios, 1))
    other = None if index is None else index + random.choice((-1, 1))
    if index is None or other is None or not 1 <= other < len(ratios):
        return None
    return _put(_put(ratios, index, ratios[other]), other, ratios[index])


def shift_region(ratios: Ratios, random: Random) -> Ratios | None:
    """A region step changes places with a skipped one before or after it."""
    index = _pick(random, _regions(ratios))
    other = None if index is None else index + random.choice((-1, 1))
    if index is None or other is None or not 1 <= other < len(ratios) or ratios[other]:
        return None
    return _put(_put(ratios, index, 0.0), other, ratios[index])


def add_dense(ratios: Ratios, random: Random) -> Ratios | None:
    """A step becomes dense."""
    index = _pick(random, [index for index, ratio in enumerate(ratios) if ratio < 1])
    return None if index is None else _put(ratios, index, 1.0)


def drop_dense(ratios: Ratios, random: Random) -> Ratios | None:
    """A dense step becomes a region step."""
    index = _pick(random, _later(ratios, 1))
    return None if index is None else _put(ratios, index, _usual(ratios))


def skip(ratios: Ratios, random: Random) -> Ratios | None:
    """A region step is skipped."""
    index = _pick(random, _regions(ratios))
    return None if index is None else _put(ratios, index, 0.0)


def unskip(ratios: Ratios, random: Random) -> Ratios | None:
    """A skipped step becomes a region step."""
    index = _pick(random, _later(ratios, 0))
    return None if index is None else _put(ratios, index, _usual(ratios))


def scale(ratios: Ratios, random: Random) -> Ratios | None:
    """All region steps compute more, or less."""
    factor = random.choice((0.7, 0.85, 1.2, 1.4))
    return tuple(_clipped(ratio * factor) if 0 < ratio < 1 else ratio for ratio in ratios)


def tilt(ratios: Ratios, random: Random) -> Ratios | None:
    """Region steps at one end of the run compute more, those at the other less."""
    places = _regions(ratios)
    if len(places) < 2:
        return None
    strength = random.choice((-0.4, -0.2, 0.2, 0.4))
    for order, index in enumerate(places):
        lean = 2 * order / (len(places) - 1) - 1  # -1 at the first region step, 1 at the last
        ratios = _put(ratios, index, _clipped(ratios[index] * (1 + strength * lean)))
    return ratios


def trade(ratios: Ratios, random: Random) -> Ratios | None:
    """A dense step more or less, paid for (or spent) by all region steps: as much compute as before."""
    changed = random.choice((add_dense, drop_dense))(ratios, random)
    if changed is None:
        return None
    places = _regions(changed)
    total = sum(changed[index] for index in places)
    if not total:
        return changed
    factor = max(0.0, total + sum(ratios) - sum(changed)) / total
    return tuple(_clipped(ratio * factor) if 0 < ratio < 1 else ratio for ratio in changed)


def split(ratios: Ratios, random: Random) -> Ratios | None:
    """A dense step becomes a region step of half the tokens, and a skipped step another."""
    index, other = _pick(random, _later(ratios, 1)), _pick(random, _later(ratios, 0))
    return None if index is None or other is None else _put(_put(ratios, index, 0.5), other, 0.5)


def join(ratios: Ratios, random: Random) -> Ratios | None:
    """A region step becomes dense, and others are skipped until it is paid for."""
    index, others = _pick(random, _regions(ratios)), _regions(ratios)
    if index is None:
        return None
    others.remove(index)
    random.shuffle(others)
    total = sum(ratios)
    ratios = _put(ratios, index, 1.0)
    for other in others:
        if sum(ratios) <= total:
            break
        ratios = _put(ratios, other, 0.0)
    return ratios


MOVES: tuple[Move, ...] = (
    *(shift_dense, shift_dense, shift_region, add_dense, drop_dense),
    *(skip, unskip, scale, tilt, trade, split, join),
)


def neighbour(ratios: Ratios, random: Random) -> Ratios:
    """A plan one move away.

    Args:
        ratios: a plan.
        random: where the moves are drawn from; equal states give equal neighbours.
    """
    check_ratios(ratios)
    for _ in range(MAX_TRIES):
        changed = random.choice(MOVES)(ratios, random)
        if changed is not None and changed != ratios:
            return changed
    return ratios  # a run of one evaluation has no neighbours
