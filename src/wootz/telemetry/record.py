"""The record: what one request leaves behind. Ledger row, span and metrics are all made from it.

Cost reports, the console, evaluation and alerts read this and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal


@dataclass(frozen=True, kw_only=True)
class RequestRecord:
    """Times are seconds. ``prompt_tokens`` include the ``cached_tokens``, as in OpenAI's usage."""

    request_id: str
    started_at: datetime
    route: str
    """The HTTP path, e.g. ``/v1/chat/completions``."""
    key_id: str | None
    """None when the server runs without accounts, or the request came without a valid key."""
    model: str
    """As the request named it, which may be a model that does not exist."""
    provider: str | None
    """What kind of `LanguageModel` answered; None when no model of that name is configured."""
    stream: bool
    status: int
    """The HTTP status; 499 when the client went away before the answer ended."""
    error_code: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cost: Decimal = Decimal(0)
    """USD, exact."""
    time_to_first_token: float | None = None
    inter_token_latency: float | None = None
    """Mean time between tokens after the first; None when there were fewer than two moments to measure between."""
    duration: float = 0.0
    client_disconnected: bool = False
    user: str | None = None
    """The request's own ``user`` field."""
