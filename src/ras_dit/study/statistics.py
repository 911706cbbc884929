"""How sure one can be of a share: an interval and a test, both of the binomial distribution."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson_interval(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a binomial share.

    Args:
        successes: 0 to ``trials``.
        trials: at least 0.
        level: its confidence, inside (0, 1).

    Returns:
        Its ends, in [0, 1]; (0, 1) without any trial.

    Raises:
        ValueError: counts or level out of range.

    Source: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", 1927. With
    p = successes / n and z the normal quantile: (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n).
    """
    _check(successes, trials)
    if not 0 < level < 1:
        raise ValueError(f"level: got {level}; allowed: inside (0, 1), such as 0.95.")
    if trials == 0:
        return 0.0, 1.0
    share = successes / trials
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    low = 0.0 if successes == 0 else (middle - half) / scale
    high = 1.0 if successes == trials else (middle + half) / scale
    return low, high


def sign_test(successes: int, trials: int) -> float:
    """The exact two-sided sign test: how likely a split at least as uneven is if both sides are equally good.

    Args:
        successes: 0 to ``trials``.
        trials: without ties.

    Returns:
        The p-value, in (0, 1]; 1 without any trial.

    Raises:
        ValueError: counts out of range.

    Source: W. J. Dixon and A. M. Mood, "The Statistical Sign Test", 1946: twice the lower tail of Binomial(n, 1/2),
    min(1, 2 sum_{k <= min(s, n - s)} C(n, k) / 2^n), in whole numbers.
    """
    _check(successes, trials)
    fewer = min(successes, trials - successes)
    tail = sum(math.comb(trials, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**trials)  # whole numbers divide exactly, however large


def _check(successes: int, trials: int) -> None:
    if not 0 <= successes <= trials:
        raise ValueError(f"counts: got {successes} of {trials}; allowed: 0 to the number of trials.")
