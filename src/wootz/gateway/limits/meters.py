"""The counters that one request has to fit into, all of them or none.

Three kinds, and what each promises:

- ``window`` (requests and tokens a minute): what was admitted in *any* 60 seconds is at most the limit. Time is cut
  into seconds and rounded up, so a counter is at most 61 numbers, and what was used is free 60 to 61 seconds later.
- ``period`` (tokens a day, budgets): what requests that began in the period have used and what running ones hold is at
  most the limit. It begins as the ledger's sum, so neither a restart nor a lost Redis forgets anything.
- ``open`` (concurrent requests): how many run now.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from typing import Any, Literal, Protocol

import msgspec

from wootz.core import UnavailableError
from wootz.gateway.limits.periods import period_at
from wootz.gateway.limits.rules import Limits, Subject

WINDOW_SECONDS = 60

LimitName = Literal[
    "requests_per_minute", "tokens_per_minute", "tokens_per_day", "concurrent_requests", "budget_exceeded",
    "conversation_steps", "conversation_budget",
]  # fmt: skip
"""As the ``code`` of a refusal says it."""


class Meter(msgspec.Struct, frozen=True):
    """One counter, and what a request holds of it. Money is in picodollars."""

    name: str
    kind: Literal["window", "period", "open"]
    subject: Subject
    limit_name: LimitName
    limit: int
    amount: int
    start: int = 0
    end: int = 0
    """Of a period, in Unix seconds; 0 when it never ends."""

    def used(self, tokens: int, picodollars: int) -> int:
        """What it counts of a request that has ended."""
        if self.limit_name in ("requests_per_minute", "conversation_steps"):
            return 1
        if self.limit_name == "concurrent_requests":
            return 0
        return picodollars if self.is_money else tokens

    @property
    def is_money(self) -> bool:
        return self.limit_name in ("budget_exceeded", "conversation_budget")

    def settlement(self, used: int) -> list[str | int]:
        """As data, for `Counters.settle_late`."""
        return [self.kind, self.name, used, self.start]


class Verdict(msgspec.Struct, frozen=True):
    """``left`` has what is left of each meter, in their order, when the request was admitted."""

    left: Sequence[int] = ()
    refused_by: Meter | None = None
    retry_after: float = 0.0
    """Seconds until the same request fits if nothing else comes; infinite when that is never."""


class Use(msgspec.Struct, frozen=True):
    """What of a limit is used, and what requests under way hold of it, in the meter's unit."""

    meter: Meter
    used: int
    held: int


Seed = Callable[[Meter], Awaitable[int]]
"""What the ledger says was used in a meter's period."""


class CountersUnavailable(UnavailableError):
    """Where it is counted is out of reach."""

    code = "limits_unavailable"


class Counters(Protocol):
    """Where it is counted. `reserve` and `settle` are atomic over all the meters."""

    outlasts_us: bool
    """Whether it is still counted there when this process is gone."""

    async def reserve(self, id: str, meters: Sequence[Meter], seed: Seed) -> Verdict:
        """Hold every meter's amount, or nothing. Raises `CountersUnavailable`."""
        ...

    def settle(self, id: str, used: Sequence[tuple[Meter, int]]) -> Awaitable[None] | None:
        """Put what was used in the place of what was held; None when that is done. Only the first call counts; it
        never raises."""
        ...

    async def settle_late(self, id: str, ago: float, settlement: list[Any]) -> None:
        """Settle, for a process that is gone, what ended ``ago`` seconds ago; ``settlement`` has the `Meter.settlement`
        of each. What only that process counted is gone with it. Raises `CountersUnavailable`."""
        ...

    async def read(self, meters: Sequence[Meter]) -> list[tuple[int, int] | None]:
        """What each has used and holds; a window tells what it holds as used. None for a period that has not been asked
        for yet. Raises `CountersUnavailable`."""
        ...

    async def close(self) -> None: ...


def meters_of(subject: Subject, now: float, tokens: int, picodollars: int) -> list[Meter]:
    """The meters of a request that may take so many tokens and so much money. ``now`` is in Unix seconds."""
    limits, meters, prefix = subject.limits, list[Meter](), f"{subject.kind}:{subject.id}"
    if (limit := limits.concurrent_requests) is not None:
        name = f"{prefix}:concurrent_requests"
        meters.append(Meter(name, "open", subject, "concurrent_requests", limit, 1))
    if (limit := limits.requests_per_minute) is not None:
        name = f"{prefix}:requests_per_minute"
        meters.append(Meter(name, "window", subject, "requests_per_minute", limit, 1))
    if (limit := limits.tokens_per_minute) is not None:
        name = f"{prefix}:tokens_per_minute"
        meters.append(Meter(name, "window", subject, "tokens_per_minute", limit, tokens))
    if limits.tokens_per_day is not None:
        meters.append(_period(subject, "tokens_per_day", limits.tokens_per_day, tokens, now))
    if limits.budget_usd is not None:
        meters.append(_period(subject, "budget_exceeded", to_picodollars(limits.budget_usd), picodollars, now))
    return meters


def _period(subject: Subject, limit_name: LimitName, limit: int, amount: int, now: float) -> Meter:
    """When the period is changed, another counter begins, as the ledger's sum over the new period."""
    limits: Limits = subject.limits
    period = "daily" if limit_name == "tokens_per_day" else limits.budget_period or "never"
    start, end = period_at(now, period, limits.time_zone, limits.reset_hour)
    name = f"{subject.kind}:{subject.id}:{limit_name}:{period}:{limits.time_zone}:{limits.reset_hour}"
    return Meter(name, "period", subject, limit_name, limit, amount, start, end)


def to_picodollars(usd: Decimal) -> int:
    return int(usd * 10**12)
