"""The record: what one request leaves behind. Ledger row, span and metrics are all made from it.

Cost reports, the console, evaluation and alerts read this and nothing else.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec

from wootz.core.journey import CacheStatus, Lane


class AttemptRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One call to one model, with what it cost. Times are seconds since the request began."""

    deployment: str
    provider: str
    start: float
    end: float | None = None
    first_token: float | None = None
    error_code: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    completion_tokens: int = 0
    cost: Decimal = Decimal(0)
    price: str | None = None
    """The price it was counted at (`Price.version`); None when nobody knows one."""
    secret_version: int | None = None
    """Of the key it was sent with; None where the key comes from a place without versions."""


class SpanRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of the way through the gateway, in seconds since the request began."""

    name: str
    start: float
    end: float | None = None
    attributes: dict[str, Any] = msgspec.field(default_factory=dict)


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """What happened on the way. Kept whole, in one column: it is only ever read together with its request."""

    attempts: tuple[AttemptRecord, ...] = ()
    spans: tuple[SpanRecord, ...] = ()
    notes: tuple[str, ...] = ()
    secret_version: int | None = None
    """Of the key that the request was sent with, where it went to its model straight, without attempts."""


NOTHING_HAPPENED = Timeline()


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Times are seconds. ``prompt_tokens`` include the ``cached_tokens`` and the ``cache_write_tokens``, and
    ``completion_tokens`` the ``reasoning_tokens``, as in OpenAI's usage. They are those of the answer; what failed
    attempts used is in the timeline, and in the ``cost``."""

    request_id: str
    started_at: datetime
    route: str
    """The HTTP path, e.g. ``/v1/chat/completions``."""
    key_id: str | None
    """None when the server runs without accounts, or the request came without a valid key."""
    model: str
    """As the request named it, which may be a route, or a model that does not exist."""
    provider: str | None
    """Who computed the answer; None when no model of that name is configured."""
    stream: bool
    status: int
    """The HTTP status; 499 when the client went away before the answer ended."""
    error_code: str | None = None
    finish_reason: str | None = None
    refused: bool = False
    """The model declined, or a filter did for it, as far as its first words tell (`telemetry/refusals.py`)."""
    guarantee: str | None = None
    """What is certain of a structured answer: ``schema``, ``json`` or ``prompted``, as the answer itself says."""
    arithmetic: str | None = None
    """How the engine that answered computes, and so what its log-probabilities are worth, e.g. ``float32+rounded``;
    None when another house answered."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cost: Decimal = Decimal(0)
    """USD, exact, of all attempts."""
    priced: bool = True
    """False when tokens were used whose price nobody knows: then the cost is that of the rest."""
    price: str | None = None
    """The price that the answer was counted at: where it stands, and since when it holds."""
    time_to_first_token: float | None = None
    inter_token_latency: float | None = None
    """Mean time between tokens after the first; None when there were fewer than two moments to measure between."""
    queue_time: float | None = None
    """Waiting for a place, where anybody measured it."""
    duration: float = 0.0
    client_disconnected: bool = False
    user: str | None = None
    """The key's user where it has one, else the request's own ``user`` field."""
    prompt_hash: str | None = None
    """Keyed, of all that the model was to read (`prompt_hash`)."""
    prompt_chars: int | None = None
    template_hash: str | None = None
    """The same of the instructions that it begins with, if it does."""
    team_id: str | None = None
    tags: dict[str, str] = msgspec.field(default_factory=dict)
    """``feature``, ``prompt_version``, … : the key's, and of the request's ``metadata``."""
    deployment: str | None = None
    """The configured model that answered, which for a route is one of several."""
    num_attempts: int = 0
    lane: Lane = "interactive"
    cache: CacheStatus = "off"
    tools: tuple[str, ...] = ()
    """Names of the functions that the answer calls."""
    timeline: Timeline = NOTHING_HAPPENED

    def whole(self) -> dict[str, Any]:
        """Every field as JSON has it, also those that say nothing."""
        return msgspec.to_builtins(msgspec.structs.asdict(self))
