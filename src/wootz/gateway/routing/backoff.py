"""How long to wait before trying again, and how often a deployment may be tried again at all.

Waits are exponential with *full jitter*, uniform between 0 and the bound, which spreads callers that failed together
(https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/). The *retry budget* keeps a struggling
endpoint from getting a multiple of its load as retries: they may make up a fifth of its requests, and a few more.
"""

from __future__ import annotations

from random import Random

FIRST_BOUND = 0.25
LONGEST_BOUND = 8.0
SHARE = 0.2
RESERVE = 10.0


def jittered(attempt: int, random: Random) -> float:
    """Seconds to wait before the ``attempt``-th repetition, the first being 1."""
    return random.uniform(0, min(LONGEST_BOUND, FIRST_BOUND * 2 ** (attempt - 1)))


class RetryBudget:
    """Each request pays in `SHARE`, each repetition takes 1; at most `RESERVE` is kept, and is there at the start."""

    def __init__(self) -> None:
        self.balance = RESERVE

    def deposit(self) -> None:
        self.balance = min(RESERVE, self.balance + SHARE)

    def withdraw(self) -> bool:
        if self.balance < 1:
            return False
        self.balance -= 1
        return True
