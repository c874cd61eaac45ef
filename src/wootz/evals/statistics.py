"""How sure a score is: intervals and tests that need no more than the standard library."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson_interval(successes: float, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a proportion (Wilson 1927): honest at 0 and 1 and for few trials, unlike ±1.96
    sigma.

    ``successes`` may be fractional, a sum of partial credits: a score between 0 and 1 varies at most as much as a coin
    of the same mean, so the interval is then rather too wide than too narrow. No trials: all of (0, 1).
    """
    if trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / trials
    middle = share + z**2 / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    scale = 1 + z**2 / trials
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def sign_test(first_better: int, second_better: int) -> float:
    """The two-sided p-value that pairs differ one way as often as the other (ties are left out; exact binomial).

    On right/wrong pairs this is McNemar's exact test.
    """
    pairs = first_better + second_better
    tail = sum(math.comb(pairs, k) for k in range(min(first_better, second_better) + 1))
    return min(1.0, 2 * tail / 2**pairs)
