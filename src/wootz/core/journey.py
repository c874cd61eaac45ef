"""What happens to one request on its way, told by whoever does it: a cache, a route, each attempt at a model.

A `Journey` travels with its request (``request.journey``; no field, so no client can write it and no endpoint is told).
The gateway begins it, the layers below add to it, and at the end the record, the span tree, the answer's headers and
``wootz trace explain`` are made from it. Whoever uses a `LanguageModel` without a gateway may ignore it.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

CacheStatus = Literal["off", "bypass", "miss", "exact", "semantic", "shared"]
"""``off``: none is switched on; ``bypass``: the request or its kind opted out; ``shared``: another request that was
under way already got the answer (single flight)."""

Lane = Literal["interactive", "batch", "shadow"]
"""``shadow``: a copy of a request, for a model on trial (`gateway/migration`). Nobody waits for its answer."""


@dataclass(slots=True, kw_only=True)
class Span:
    """A stretch of the way; seconds since the journey began. ``end`` is None while it lasts, which as a context manager
    it does until the block ends."""

    name: str
    start: float
    end: float | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    journey_begun: float = 0.0

    def __enter__(self) -> Span:
        return self

    def __exit__(self, *_: object) -> None:
        self.end = time.perf_counter() - self.journey_begun


@dataclass(frozen=True, slots=True)
class Bounds:
    """``regions``: where alone it may be computed; None: anywhere. ``barred``: models that it may not reach, by name:
    they are not approved for its class of data, or are for other teams."""

    regions: frozenset[str] | None = None
    barred: frozenset[str] = frozenset()


ANYWHERE = Bounds()


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One call to one model behind a name, also one that failed; failed attempts may have cost something too."""

    deployment: str
    """The model's name in the config."""
    provider: str
    start: float
    end: float | None = None
    first_token: float | None = None
    error_code: str | None = None
    """None when it answered."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    completion_tokens: int = 0
    secret_version: int | None = None
    """Of the key it was sent with, where that comes from a store with versions."""


@dataclass(slots=True)
class Journey:
    caller: str = ""
    """Whom the work is counted for: the key's id, where there are accounts."""
    tenant: str = ""
    """What may share cached answers: the key's team, else the key. Empty without accounts."""
    team: str = ""
    """The id of the team that the key belongs to."""
    user: str = ""
    """The id of the user that the key belongs to; a request's own ``user`` field is only what the client says."""
    bounds: Bounds = ANYWHERE
    """Where it may go."""
    tags: dict[str, str] = field(default_factory=dict)
    """What the spending is counted under, besides; those of the key, and what the request's ``metadata`` says."""
    conversation: str = ""
    """Which one it is a step of, where the client says so."""
    lane: Lane = "interactive"
    variant: str = ""
    """The model that is to answer, where a migration decided it: answers of two models share no place in a cache."""
    cache_control: str = ""
    """The header that the request came with (`core/cache_control.py`)."""
    cache: CacheStatus = "off"
    cache_age: float | None = None
    """Seconds since the answer was kept, when it came out of a cache."""
    attempts: list[Attempt] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Why it went as it went, a sentence each: "route chat: cheapest of 3 is qwen-flash". No content, no secrets."""
    scores: dict[str, float] = field(default_factory=dict)
    """How hard a learned router thinks it is, by route: 0, a cheap model does, to 1, it takes a dear one."""
    answer_headers: dict[str, str] = field(default_factory=dict)
    """HTTP headers that go out with the answer, where it goes out by HTTP."""
    secret_version: int | None = None
    """Of the key that the request was sent with, where no attempts are made."""
    arithmetic: str | None = None
    """How the engine that answers computes (`wootz.engine.arithmetic`); None where another house answers."""
    begun: float = field(default_factory=time.perf_counter)

    @property
    def now(self) -> float:
        """Seconds since it began."""
        return time.perf_counter() - self.begun

    def span(self, name: str, **attributes: Any) -> Span:
        """A stretch begins, for a ``with``."""
        self.spans.append(span := Span(name=name, start=self.now, attributes=attributes, journey_begun=self.begun))
        return span

    def attempt(self, deployment: str, provider: str) -> Attempt:
        """A call begins."""
        self.arithmetic = None
        attempt = Attempt(deployment=deployment, provider=provider, start=self.now)
        self.attempts.append(attempt)
        return attempt

    @property
    def answered_by(self) -> Attempt | None:
        """The attempt that answered, or the last one."""
        if not self.attempts:
            return None
        return next((one for one in reversed(self.attempts) if one.error_code is None), self.attempts[-1])


UNDER_WAY: ContextVar[Attempt | Journey | None] = ContextVar("what this task is asking a model for", default=None)
"""The attempt, or the journey of a request that goes to its model straight. What sends it writes there which version of
a key it sent: providers are asked through protocols that know nothing of keys."""
