"""The order in which those who wait are let in: urgent ones first, and among equals fairly between users.

Two counts decide between users. *What they have under way* (tokens, by weight) comes first: whoever has least gets the
place, so a user who comes late does not wait until another's hundred requests are through. *What they were given* comes
second, as in start-time fair queueing [1] with tokens for bytes [2]: over time each gets tokens in proportion to its
weight, and nobody saves up a claim while idle. A request is charged a guess when it is let in, corrected when it ends.

A full queue is not the fault of who comes last: the newest request of whoever waits with most is sent away [3], of the
least urgent ones first.

[1] Goyal, Vin, Cheng, "Start-time Fair Queueing", 1996. [2] Sheng et al., "Fairness in Serving Large Language Models",
2024 (arXiv 2401.00588). [3] Suter et al., "Buffer Management Schemes for Supporting TCP in Gigabit Routers", 1999.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

SWEEP_AT = 1024
"""Users, of whom some may be forgotten."""


class Flow:
    """A user at one model. ``given`` and ``under_way`` are tokens divided by the weight."""

    __slots__ = ("given", "num_running", "num_waiting", "under_way")

    def __init__(self, given: float) -> None:
        self.given = given
        self.under_way = 0.0
        self.num_running = self.num_waiting = 0


@dataclass(eq=False, slots=True)
class Entry:
    """One request. ``cost`` is what it will use, in tokens by weight, as far as anybody can guess."""

    user: str
    urgency: int
    """Lower goes first."""
    cost: float
    waker: Any = field(default=None)
    flow: Flow | None = None


class FairOrder:
    """State of one model. Knows neither time nor how many places there are."""

    def __init__(self) -> None:
        self.num_waiting = 0
        self._flows: dict[str, Flow] = {}
        self._sweep_at = SWEEP_AT
        self._virtual_time = 0.0
        """What the user had been given who was let in last; who comes back from idleness begins there."""
        self._waiting: dict[int, dict[str, deque[Entry]]] = {}
        """By urgency and user; no empty ones."""

    def start(self, entry: Entry) -> None:
        """It is let in."""
        flow = entry.flow = self._flow(entry.user)
        self._virtual_time = max(self._virtual_time, flow.given)
        flow.given += entry.cost
        flow.under_way += entry.cost
        flow.num_running += 1

    def end(self, entry: Entry, used: float) -> None:
        """It is over, and used so much, in tokens by weight."""
        flow = entry.flow
        assert flow is not None
        flow.given += used - entry.cost
        flow.under_way -= entry.cost
        flow.num_running -= 1
        self._forget(entry.user, flow)

    def wait(self, entry: Entry) -> None:
        self._flow(entry.user).num_waiting += 1
        self._waiting.setdefault(entry.urgency, {}).setdefault(entry.user, deque()).append(entry)
        self.num_waiting += 1

    def next(self, least_urgent: int) -> Entry | None:
        """Who is let in next, of those who are at least so urgent; no longer waiting, and started."""
        urgency = min(self._waiting, default=least_urgent + 1)
        if urgency > least_urgent:
            return None
        user = min(self._waiting[urgency], key=self._claim)
        entry = self._waiting[urgency][user][0]
        self.leave(entry)
        self.start(entry)
        return entry

    def leave(self, entry: Entry) -> None:
        """It waits no longer."""
        level = self._waiting[entry.urgency]
        level[entry.user].remove(entry)
        if not level[entry.user]:
            del level[entry.user]
        if not level:
            del self._waiting[entry.urgency]
        self.num_waiting -= 1
        flow = self._flows[entry.user]
        flow.num_waiting -= 1
        self._forget(entry.user, flow)

    def last(self, newcomer: Entry) -> Entry:
        """Who has to go when the newcomer is one too many: the newcomer, or one who waits."""
        urgency = max([*self._waiting, newcomer.urgency])
        level = self._waiting.get(urgency, {})
        user = max(level, key=lambda user: len(level[user]), default=newcomer.user)
        if newcomer.urgency == urgency:
            own = len(level.get(newcomer.user, ()))
            if own + 1 >= len(level.get(user, ())):
                return newcomer
        return level[user][-1]

    def check_integrity(self) -> None:
        """For tests."""
        queues = [queue for level in self._waiting.values() for queue in level.values()]
        assert all(self._waiting.values())
        assert all(queues)
        assert self.num_waiting == sum(map(len, queues)) == sum(flow.num_waiting for flow in self._flows.values())
        for flow in self._flows.values():
            assert flow.num_running or abs(flow.under_way) < 1e-6

    def _claim(self, user: str) -> tuple[float, float]:
        flow = self._flows[user]
        return flow.under_way, flow.given

    def _flow(self, user: str) -> Flow:
        flow = self._flows.get(user)
        if flow is None:
            flow = self._flows[user] = Flow(self._virtual_time)
        elif not (flow.num_running or flow.num_waiting):
            flow.given = max(flow.given, self._virtual_time)
        return flow

    def _forget(self, user: str, flow: Flow) -> None:
        """Who has nothing here, and is ahead of nobody, is as one who was never here."""
        if flow.num_running or flow.num_waiting:
            return
        if flow.given <= self._virtual_time:
            del self._flows[user]
        elif len(self._flows) > self._sweep_at:
            self._flows = {
                name: one
                for name, one in self._flows.items()
                if one.num_running or one.num_waiting or one.given > self._virtual_time
            }
            self._sweep_at = max(SWEEP_AT, 2 * len(self._flows))
