"""Intervals and tests against values worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ras_dit.study import sign_test, wilson_interval

EXACT = 1e-12  # float64, a few operations
PRINTED = 5e-5  # values given to four places


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # z^2 = 3.841459; 0 of 10: (0, z^2 / (10 + z^2)); 5 of 10: 1/2 +- z / (2 sqrt(10 + z^2))
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        # 81 of 263, the example of Newcombe, "Two-sided confidence intervals for the single proportion", 1998
        (81, 263, 0.2553, 0.3662),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=PRINTED)


def test_wilson_by_hand() -> None:
    """z = 1 at a level of 68.27 %: 1 of 2 gives (1/2 +- sqrt(1/8 + 1/16) / 1) scaled: (3/4 +- sqrt(3)/4) / (3/2)."""
    level = math.erf(1 / math.sqrt(2))
    half = math.sqrt(3) / 6
    assert wilson_interval(1, 2, level) == pytest.approx((0.5 - half, 0.5 + half), abs=EXACT)


@pytest.mark.parametrize(
    ("successes", "trials", "p_value"),
    [
        (0, 0, 1.0),
        (1, 1, 1.0),
        (5, 5, 2 / 32),
        (0, 5, 2 / 32),
        (9, 10, 2 * (1 + 10) / 1024),
        (3, 10, 2 * (1 + 10 + 45 + 120) / 1024),
        (5, 10, 1.0),
        (2500, 5000, 1.0),
        (0, 5000, 0.0),  # 2^-4999 is below what a float can be
    ],
)
def test_sign_test(successes: int, trials: int, p_value: float) -> None:
    assert sign_test(successes, trials) == pytest.approx(p_value, abs=EXACT)


@given(st.integers(0, 300), st.integers(0, 300))
def test_symmetry(wins: int, losses: int) -> None:
    total = wins + losses
    low, high = wilson_interval(wins, total)
    assert 0 <= low <= high <= 1
    if total:
        assert low <= wins / total <= high
        assert wilson_interval(losses, total) == pytest.approx((1 - high, 1 - low), abs=1e-9)
    assert 0 < sign_test(wins, total) <= 1
    assert sign_test(wins, total) == sign_test(losses, total)


@pytest.mark.parametrize(("successes", "trials"), [(-1, 3), (4, 3), (0, -1)])
def test_counts_are_checked(successes: int, trials: int) -> None:
    for function in (wilson_interval, sign_test):
        with pytest.raises(ValueError, match="counts: got"):
            function(successes, trials)
    with pytest.raises(ValueError, match="level"):
        wilson_interval(1, 2, 95)
