"""A discrete-event simulation of replicas under a load: requests arrive, wait, are served; replicas load, are paid for
by the hour, and leave. With a fixed number of replicas it is the M/M/c queue, which is how it is checked.

Arrivals are Poisson with the rate of a `Trace`, service times exponential; a replica that is to leave takes no new
requests and is gone when it has none. Every random number comes from one seed.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field
from itertools import count
from random import Random

from wootz.gateway.scaling.policy import Policy, State, decide
from wootz.gateway.scaling.traces import Trace

SMOOTHING_SECONDS = 60.0


@dataclass
class Replica:
    started: float
    ready: float
    busy: int = 0
    leaving: bool = False
    gone: float | None = None


@dataclass
class Result:
    waits: list[float] = field(default_factory=list)
    refused: int = 0
    replicas: list[Replica] = field(default_factory=list)
    changes: list[tuple[float, int, str]] = field(default_factory=list)
    """When, how many more (or fewer, negative), why."""
    samples: list[tuple[float, int, float]] = field(default_factory=list)
    """When, replicas that are loaded, busy places and waiting requests."""
    busy_seconds: float = 0.0
    seconds: float = 0.0
    billing: float = 3600.0

    @property
    def mean_wait(self) -> float:
        return sum(self.waits) / len(self.waits) if self.waits else 0.0

    def wait_quantile(self, share: float) -> float:
        ordered = sorted(self.waits)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0

    def share_waiting(self, longer: float = 0.0) -> float:
        return sum(wait > longer for wait in self.waits) / len(self.waits) if self.waits else 0.0

    @property
    def paid_hours(self) -> float:
        """In whole pieces of ``billing``, as they are paid for."""
        pieces = (math.ceil(((one.gone or self.seconds) - one.started) / self.billing) for one in self.replicas)
        return sum(max(1, number) for number in pieces) * self.billing / 3600

    def flaps(self, within: float) -> int:
        """How often it went up and down again, or down and up, in less than so many seconds."""
        pairs = zip(self.changes, self.changes[1:], strict=False)
        return sum((a[1] > 0) != (b[1] > 0) and b[0] - a[0] < within for a, b in pairs)


@dataclass(frozen=True, kw_only=True)
class Machine:
    places: int = 8
    """Requests a replica works on at a time."""
    service: float = 5.0
    """Seconds of a request, on average."""
    load_delay: float = 180.0
    """From being asked for to answering: the machine, the image, the weights."""


def simulate(
    trace: Trace,
    machine: Machine,
    policy: Policy | int,
    *,
    seed: int = 0,
    start_with: int | None = None,
    max_waiting: int | None = None,
    look_every: float = 15.0,
) -> Result:
    """``policy``: a number of replicas that never changes, or a policy that is asked every ``look_every`` seconds."""
    rules = Policy(floor=policy, ceiling=policy) if isinstance(policy, int) else policy
    house = _House(machine, rules, seed, trace.seconds, max_waiting)
    house.start(start_with or rules.floor, 0.0, delay=0.0)
    arrivals = trace.arrivals(Random(seed + 1))
    arrival, look = next(arrivals, math.inf), 0.0
    while arrival < math.inf or house.waiting or house.num_busy:
        event = house.events[0][0] if house.events else math.inf
        now = min(arrival, event, look)
        if now == event:
            house.next_event()
        elif now == arrival:
            house.arrive(now)
            arrival = next(arrivals, math.inf)
        else:
            house.look(now)
            look += look_every
    return house.result


class _House:
    """The replicas, and who waits for them."""

    def __init__(self, machine: Machine, policy: Policy, seed: int, seconds: float, max_waiting: int | None) -> None:
        self.machine, self.policy, self.max_waiting = machine, policy, max_waiting
        self.result = Result(seconds=seconds, billing=policy.billing)
        self.replicas: list[Replica] = []
        self.waiting = deque[float]()
        self.num_busy = 0
        self.events: list[tuple[float, int, Replica, bool]] = []
        """When, a number that settles ties, whose, and whether a request ends (or the replica is loaded)."""
        self._random, self._numbers = Random(seed), count()
        self._arrived, self._demands = 0, deque[tuple[float, float]]()

    def start(self, number: int, now: float, *, delay: float) -> None:
        for _ in range(number):
            replica = Replica(now, now + delay)
            self.replicas.append(replica)
            self.result.replicas.append(replica)
            heapq.heappush(self.events, (replica.ready, next(self._numbers), replica, False))

    def arrive(self, now: float) -> None:
        self._arrived += 1
        if not self.waiting and (replica := self._free(now)) is not None:
            self._serve(now, now, replica)
        elif self.max_waiting is not None and len(self.waiting) >= self.max_waiting:
            self.result.refused += 1
        else:
            self.waiting.append(now)

    def next_event(self) -> None:
        now, _, replica, is_end = heapq.heappop(self.events)
        if is_end:
            replica.busy -= 1
            self.num_busy -= 1
            if replica.leaving and not replica.busy:
                self._remove(replica, now)
        while self.waiting and (free := self._free(now)) is not None:
            self._serve(self.waiting.popleft(), now, free)

    def look(self, now: float) -> None:
        """Ask the policy, and do what it says."""
        if now > self.result.seconds:
            return
        policy, machine = self.policy, self.machine
        staying = [one for one in self.replicas if not one.leaving]
        running = [one for one in staying if one.ready <= now]
        self.result.samples.append((now, len(running), self.num_busy + len(self.waiting)))
        state = State(
            now=now,
            demand=self._demand(now),
            peak=max(demand for _, demand in self._demands),
            places=machine.places,
            running=len(running),
            loading=len(staying) - len(running),
            paid_left=[self._paid_left(one, now) for one in running],
        )
        decision = decide(policy, state)
        self.start(decision.start, now, delay=machine.load_delay)
        for one in sorted(running, key=lambda one: self._paid_left(one, now))[: decision.stop]:
            one.leaving = True
            if not one.busy:
                self._remove(one, now)
        if decision.start or decision.stop:
            self.result.changes.append((now, decision.start - decision.stop, decision.why))

    def _demand(self, now: float) -> float:
        """Arrivals of the last minute or so, times what one takes."""
        if not self._demands:
            demand = 0.0
        else:
            last, before = self._demands[-1]
            rate = self._arrived / max(now - last, 1e-9)
            demand = before + (rate * self.machine.service - before) * min(1.0, (now - last) / SMOOTHING_SECONDS)
        self._arrived = 0
        self._demands.append((now, demand))
        while self._demands[0][0] < now - self.policy.look_back:
            self._demands.popleft()
        return demand

    def _serve(self, arrived: float, now: float, replica: Replica) -> None:
        length = self._random.expovariate(1 / self.machine.service)
        self.result.waits.append(now - arrived)
        self.result.busy_seconds += length
        replica.busy += 1
        self.num_busy += 1
        heapq.heappush(self.events, (now + length, next(self._numbers), replica, True))

    def _free(self, now: float) -> Replica | None:
        places = self.machine.places
        free = (one for one in self.replicas if one.ready <= now and not one.leaving and one.busy < places)
        return min(free, key=lambda one: one.busy, default=None)

    def _remove(self, replica: Replica, now: float) -> None:
        replica.gone = now
        self.replicas.remove(replica)

    def _paid_left(self, replica: Replica, now: float) -> float:
        return self.policy.billing - (now - replica.started) % self.policy.billing
