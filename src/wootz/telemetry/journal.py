"""From a request's `Journey` to what its record keeps of it: attempts with their cost, stages, sentences, tags.

Everything is bounded. A client decides how much metadata it sends and how many tools it names, a broken upstream
how often it is retried; neither decides how large a row is.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from wootz.core.journey import Attempt, Journey, Span
from wootz.core.wire import Usage
from wootz.telemetry.price_book import Price, PriceBook
from wootz.telemetry.prices import Tokens, cost
from wootz.telemetry.record import AttemptRecord, SpanRecord, Timeline

MAX_ATTEMPTS = 64
MAX_SPANS = 128
MAX_NOTES = 64
MAX_NOTE_CHARS = 500
MAX_TAGS = 16
MAX_TOOLS = 32
MAX_TAG_CHARS = 128
"""OpenAI allows 16 pairs of metadata, of 64 and 512 characters; reports need names, not texts."""


def storable(text: str, max_chars: int = MAX_NOTE_CHARS) -> str:
    """Names come from outside, and databases refuse what JSON lets through: NUL and lone surrogates."""
    if text.isascii() and len(text) <= max_chars and "\0" not in text:  # As nearly all are.
        return text
    return text[:max_chars].encode("utf-8", "replace").decode().replace("\0", "?")


def tags_of(journey: Journey, metadata: Any) -> dict[str, str]:
    """What the client says of the request, overruled by what its key says."""
    if metadata is None and not journey.tags:
        return {}
    said = metadata if isinstance(metadata, Mapping) else {}
    texts = {str(name): value for name, value in said.items() if isinstance(value, str)} | journey.tags
    if not texts:
        return {}
    bounded = {storable(name, MAX_TAG_CHARS): storable(value, MAX_TAG_CHARS) for name, value in texts.items()}
    mine = [name for name in bounded if name in journey.tags]
    return {name: bounded[name] for name in [*mine, *(name for name in bounded if name not in mine)][:MAX_TAGS]}


def timeline_of(journey: Journey, usage: Usage, prices: PriceBook, at: datetime) -> Timeline:
    """``usage`` is the answer's: it belongs to the attempt that answered, unless that counted for itself."""
    answering = journey.answered_by
    attempts = []
    for attempt in journey.attempts[-MAX_ATTEMPTS:]:
        tokens = _tokens(attempt)
        if attempt is answering and not tokens.any and journey.cache not in HITS:
            tokens = Tokens.of(usage)
        price = prices.find(attempt.deployment, attempt.provider, at, tokens.prompt)
        attempts.append(_attempt_record(attempt, tokens, price, journey))
    return Timeline(
        attempts=tuple(attempts),
        spans=tuple(map(_span_record, journey.spans[:MAX_SPANS])),
        notes=tuple(map(storable, journey.notes[:MAX_NOTES])),
        secret_version=journey.secret_version,
    )


HITS = ("exact", "semantic", "shared")
"""What a cache answered was paid for before, or is paid for by another request."""


def queue_time(journey: Journey) -> float | None:
    """Whoever makes a request wait for a place calls that stretch ``queue``."""
    waits = [span.end - span.start for span in journey.spans if span.name == "queue" and span.end is not None]
    return sum(waits) if waits else None


def _span_record(span: Span) -> SpanRecord:
    attributes = _plain(span.attributes) if span.attributes else {}
    return SpanRecord(name=span.name, start=span.start, end=span.end, attributes=attributes)


def _attempt_record(attempt: Attempt, tokens: Tokens, price: Price | None, journey: Journey) -> AttemptRecord:
    return AttemptRecord(
        deployment=attempt.deployment,
        provider=attempt.provider,
        start=attempt.start,
        end=attempt.end,
        first_token=attempt.first_token,
        error_code=attempt.error_code,
        prompt_tokens=tokens.prompt,
        cached_tokens=tokens.cached,
        cache_write_tokens=tokens.written,
        completion_tokens=tokens.completion,
        cost=cost(tokens, price, journey.lane),
        price=price.version if price else None,
        secret_version=attempt.secret_version,
    )


def _tokens(attempt: Attempt) -> Tokens:
    return Tokens(
        prompt=attempt.prompt_tokens,
        cached=attempt.cached_tokens,
        written=attempt.cache_write_tokens,
        completion=attempt.completion_tokens,
    )


def _plain(attributes: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value if isinstance(value, bool | int | float) or value is None else storable(str(value))
        for name, value in attributes.items()
    }
