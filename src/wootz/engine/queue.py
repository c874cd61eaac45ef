"""Who waits, and whose turn it is. Three rules, each of which only decides among those that the one before left equal:

1. **Priority.** The lowest number goes first, as in vLLM. Who waits gains a level every `AGING_STEPS` steps, up to the
   best that anyone in the queue has: so a low priority waits, but not for ever, and age never outranks a user.
2. **Fairness.** The user who was served least goes first, in tokens divided by the user's weight. These are the virtual
   token counters of VTC (arXiv 2401.00588): a prompt token that was computed counts 1, an answered one 2, a cached one
   nothing. A user who comes (back) starts where the least served of those present is, so nobody saves up for later.
3. **Locality.** Among users who are ahead of the least served one by at most ``slack`` tokens, the request with most
   of its prompt in the cache goes first, then the older (as DLPM does, arXiv 2501.14312). The one whose turn it
   was can be passed over `MOST_PASSED` times.

Time is counted in steps, and ties are broken by arrival, so the order depends on nothing but what was asked, and when.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from wootz.engine.sequence import Sequence

AGING_STEPS = 64
LOOKAHEAD = 16
"""So many of those whose turn it could be are looked up in the cache."""
MOST_PASSED = 16
ANSWERED_COST = 2.0
MOST_ABSENT = 4096
"""Users who have nothing to do here any more, and whose counters are remembered all the same."""


class Queue:
    """Waiting sequences, a line for each priority and user. ``num_cached``: how much of a prompt is in the cache."""

    def __init__(
        self,
        *,
        weights: Mapping[str, float] | None = None,
        slack: float = 0,
        num_cached: Callable[[Sequence], int] = lambda sequence: 0,
    ) -> None:
        self.weights, self.slack, self.num_cached = weights or {}, slack, num_cached
        self.lines: dict[tuple[int, str], list[Sequence]] = {}
        self.served: dict[str, float] = {}
        """Of each user, what was computed for them; comparable among those present."""
        self.present: Counter[str] = Counter()
        """Sequences of each user that wait or run."""
        self.absent: dict[str, None] = {}
        """An ordered set of the users in ``served`` who are not present, longest away first."""
        self._turn: Sequence | None = None

    def __len__(self) -> int:
        return sum(map(len, self.lines.values()))

    def __iter__(self) -> Iterator[Sequence]:
        return (sequence for line in self.lines.values() for sequence in line)

    # --- whose turn -------------------------------------------------------------------------------------------

    def first(self, step: int) -> Sequence | None:
        """Who is to be admitted next; its ``level`` is set. None when nobody waits."""
        if not self.lines:
            return None
        best = min(priority for priority, _ in self.lines)
        levels = {key: self._level(line[0], best, step) for key, line in self.lines.items()}
        level = min(levels.values())
        lines = [(self.served[key[1]], line) for key, line in self.lines.items() if levels[key] == level]
        least, line = min(lines, key=lambda line: (line[0], line[1][0].arrival))
        first = self._turn = line[0]
        if first.num_passed < MOST_PASSED:
            equals = [s for served, line in lines if served <= least + self.slack for s in line[:LOOKAHEAD]]
            first = self._most_cached(first, [s for s in equals if self._level(s, best, step) == level])
        first.level = level
        return first

    def _level(self, sequence: Sequence, best: int, step: int) -> int:
        return max(sequence.request.priority - (step - sequence.request.submitted_at) // AGING_STEPS, best)

    def _most_cached(self, first: Sequence, others: list[Sequence]) -> Sequence:
        if len(others) < 2:
            return first
        most, chosen = self.num_cached(first), first
        for sequence in sorted(others, key=lambda s: s.arrival)[:LOOKAHEAD]:
            if (num_cached := self.num_cached(sequence)) > most:
                most, chosen = num_cached, sequence
        return chosen

    # --- coming and going -------------------------------------------------------------------------------------

    def arrive(self, sequence: Sequence) -> None:
        """A sequence begins to exist; it waits only once it is `put`."""
        user = sequence.request.user
        if not self.present[user]:
            least = min((self.served[other] for other, count in self.present.items() if count), default=0.0)
            self.served[user] = max(self.served.get(user, 0.0), least)
            self.absent.pop(user, None)
        self.present[user] += 1

    def leave(self, sequence: Sequence) -> None:
        """It has ended. When nobody is left, nobody is owed anything."""
        user = sequence.request.user
        self.present[user] -= 1
        if self.present[user]:
            return
        del self.present[user]
        self.absent[user] = None
        if not self.present:
            self.served.clear()
            self.absent.clear()
        elif len(self.absent) > MOST_ABSENT:
            forgotten = next(iter(self.absent))
            del self.absent[forgotten], self.served[forgotten]

    def put(self, sequence: Sequence) -> None:
        line = self.lines.setdefault((sequence.request.priority, sequence.request.user), [])
        insort(line, sequence, key=lambda s: s.arrival)

    def take(self, sequence: Sequence) -> None:
        """It does not wait any more: it runs, or is not wanted."""
        key = sequence.request.priority, sequence.request.user
        self.lines[key].remove(sequence)
        if not self.lines[key]:
            del self.lines[key]

    def admitted(self, sequence: Sequence) -> None:
        """Whoever `first` named is admitted; the one whose turn it was remembers if it was another."""
        if self._turn is not None and self._turn is not sequence:
            self._turn.num_passed += 1
        self.take(sequence)

    def charge(self, sequence: Sequence, end: int) -> None:
        """The sequence is computed up to ``end``: its user pays for what was not paid for yet."""
        start, prompt_end = sequence.num_charged, len(sequence.request.prompt_token_ids)
        if end > start:
            sequence.num_charged = end
            answered = max(0, end - max(start, prompt_end))
            cost = (end - start - answered) + ANSWERED_COST * answered
            self.served[sequence.request.user] += cost / self.weights.get(sequence.request.user, 1.0)

    def check_integrity(self, running: list[Sequence]) -> None:
        """Raise AssertionError unless lines and counters agree with who waits and runs."""
        assert all(self.lines.values()), "an empty line"
        for (priority, user), line in self.lines.items():
            assert line == sorted(line, key=lambda s: s.arrival), "out of order"
            assert all((s.request.priority, s.request.user) == (priority, user) for s in line), "in the wrong line"
        assert Counter(s.request.user for s in [*self, *running]) == self.present, "users miscounted"
        assert not self.absent.keys() & self.present.keys(), "a user is here and away"
        assert self.served.keys() == self.absent.keys() | self.present.keys(), "a counter without a user"
