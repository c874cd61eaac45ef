"""How far to draft: as far as it pays, which may be not at all.

If each drafted token is right with probability a, and the first wrong one ends it, a step that checks k of them
brings ``1 + a + … + a^k = (1 - a^(k+1)) / (1 - a)`` tokens (arXiv 2211.17192). It takes the time of 1 + ck plain steps.
c has two parts: what drafting a token takes, and what one more row takes the model. The second is next to nothing
while a step is bound by reading weights, and as much as all else when it is bound by arithmetic: with B answers in it,
and a row that takes ``row_cost`` of the time that the weights take, it is ``row_cost * B / (1 + row_cost * B)``. So
one formula chooses k, stops for an answer whose drafts are wrong, and stops for all when the batch is large.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from wootz.engine.sequence import Sequence

PROBE_EVERY = 32
"""Steps after which an answer that is not drafted for is tried again."""

DEFAULT_ROW_COSTS = {"cuda": 1 / 128, "cpu": 1 / 6}
"""By kind of device; see `wootz spec measure`."""


def expected_tokens(acceptance: float, depth: int) -> float:
    """Tokens that a step brings which checks a draft of this depth."""
    return sum(acceptance**place for place in range(depth + 1))


def speedup(acceptance: float, num_tokens: int, cost: float = 0.0) -> float:
    """How much faster than plain decoding, where drafting and checking a token takes ``cost`` of a plain step."""
    return expected_tokens(acceptance, num_tokens) / (1 + cost * num_tokens)


def simulate(acceptance: float, num_tokens: int, num_steps: int, seed: int = 0) -> float:
    """Tokens per step, where each drafted token is right by chance; what `expected_tokens` must come to."""
    chance = random.Random(seed)
    right = (
        next((place for place in range(num_tokens) if chance.random() >= acceptance), num_tokens)
        for _ in range(num_steps)
    )
    return 1 + sum(right) / num_steps


def best_length(acceptance: float, cost: float, most: int) -> int:
    """The number of drafted tokens that is fastest, 0 if none is faster than plain decoding."""
    return max(range(most + 1), key=lambda k: speedup(acceptance, k, cost))


def checking_cost(row_cost: float, batch: int) -> float:
    """What one more token to check for each of ``batch`` answers takes, as a part of their plain step."""
    return row_cost * batch / (1 + row_cost * batch)


@dataclass
class Acceptance:
    """How often a drafted token was right, the latest counting most."""

    accepted: float = 3.0
    judged: float = 4.0

    @property
    def rate(self) -> float:
        return self.accepted / self.judged

    def add(self, accepted: int, judged: int, keep: float) -> None:
        self.accepted, self.judged = keep * self.accepted + accepted, keep * self.judged + judged


class Pace:
    """What each answer's drafts have been worth, and so how long the next one may be."""

    KEEP, KEEP_OVERALL = 0.9, 0.99

    def __init__(self, *, draft_cost: float, depth: int | None, most: int, row_cost: float) -> None:
        """``depth`` is that of a draft that branches and is drafted as a whole; None of a chain."""
        self.draft_cost, self.depth, self.most, self.row_cost = draft_cost, depth, most, row_cost
        self.overall = Acceptance()
        self._of: WeakKeyDictionary[Sequence, Acceptance] = WeakKeyDictionary()
        self._idle: WeakKeyDictionary[Sequence, int] = WeakKeyDictionary()

    def length(self, sequence: Sequence, batch: int) -> int:
        """How many tokens to draft for this answer, in a step in which ``batch`` are written."""
        length = self._best(self._acceptance(sequence).rate, batch)
        if length == 0 and self._best(1.0, batch) > 0:
            self._idle[sequence] = idle = self._idle.get(sequence, 0) + 1
            if idle % PROBE_EVERY == 0:
                return 1 if self.depth is None else self.most
        return length

    def learn(self, sequence: Sequence, accepted: int, judged: int) -> None:
        """Of its latest draft ``judged`` tokens in a row were looked at, and all but perhaps the last were right."""
        if judged:
            self._acceptance(sequence).add(accepted, judged, self.KEEP)
            self.overall.add(accepted, judged, self.KEEP_OVERALL)

    def _acceptance(self, sequence: Sequence) -> Acceptance:
        if sequence not in self._of:
            self._of[sequence] = Acceptance(4 * self.overall.rate, 4)
        return self._of[sequence]

    def _best(self, acceptance: float, batch: int) -> int:
        checking = checking_cost(self.row_cost, batch)
        if self.depth is None:
            return best_length(acceptance, self.draft_cost + checking, self.most)
        cost = 1 + self.draft_cost * self.depth + checking * self.most
        return self.most if expected_tokens(acceptance, self.depth) > cost else 0
