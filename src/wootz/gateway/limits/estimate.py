"""What a request may use, guessed before it is answered: its prompt, and the longest answer it allows.

No tokenizer is asked (a remote model's is not here, and a local one's costs more than the limit is worth). Three bytes
of UTF-8 a token is more tokens than English, code and Chinese need with the vocabularies in use; the longest answer is
`max_tokens`. Where either is wrong the request is settled to what it used all the same, and the counter is over its
limit by the difference: that is the reservation error.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal

from wootz.core import LanguageModel
from wootz.core.journey import Lane
from wootz.core.media import MediaRequest
from wootz.core.tool_wire import ModelRequest
from wootz.core.wire import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    RerankRequest,
    Usage,
)
from wootz.gateway.migration.members import Member
from wootz.gateway.routing import Route
from wootz.providers.cascade import Cascade
from wootz.telemetry.price_book import PriceBook
from wootz.telemetry.prices import Tokens, cost, cost_of_units

BYTES_PER_TOKEN = 3
TOKENS_PER_MESSAGE = 8
"""Roles and separators of a chat template."""
TOKENS_PER_ATTACHMENT = 1500
"""An image of about a megapixel, as most providers count it."""


def estimate(request: ModelRequest, assumed_completion_tokens: int) -> Usage:
    """``assumed_completion_tokens`` is for requests that set no limit of their own."""
    prompt, completion = 0, 0
    if isinstance(request, ChatRequest):
        prompt = sum(_message(message) for message in request.messages)
        extras = (*(request.tools or ()), *([request.response_format] if request.response_format else ()))
        prompt += sum(_text(extra.model_dump_json()) for extra in extras)
        longest = request.max_completion_tokens or request.max_tokens or assumed_completion_tokens
        completion = longest * (request.n or 1)
    elif isinstance(request, CompletionRequest):
        prompt = _texts(request.prompts)
        longest = assumed_completion_tokens if request.max_tokens is None else request.max_tokens
        completion = longest * max(request.n or 1, request.best_of or 1) * len(request.prompts)
    elif isinstance(request, EmbeddingRequest):
        texts = request.input if isinstance(request.input, list) else [request.input]
        prompt = len(texts) if texts and isinstance(texts[0], int) else _texts(texts)  # type: ignore[arg-type]
    elif isinstance(request, RerankRequest):
        prompt = _texts(request.texts) + _text(request.query) * len(request.documents)
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


def dearest(model: LanguageModel, usage: Usage, prices: PriceBook, now: float, lane: Lane) -> Decimal:
    """What it may cost: on a route whatever its dearest member asks, and where it hedges a second one for reading; in a
    cascade what all of them do together, the cheap ones as often as it takes to judge them."""
    if isinstance(model, Member):
        return dearest(model.model, usage, prices, now, lane)
    if isinstance(model, Route):
        members = [one.model for one in model.deployments]
        most = max(dearest(one, usage, prices, now, lane) for one in members)
        if not model.config.hedge or len(members) == 1:
            return most
        read = usage.model_copy(update={"completion_tokens": 0, "total_tokens": usage.prompt_tokens})
        return most + max(dearest(one, read, prices, now, lane) for one in members)
    if isinstance(model, Cascade):
        cheap = sum((dearest(one, usage, prices, now, lane) for one in model.models[:-1]), Decimal(0))
        return model.calls * cheap + dearest(model.models[-1], usage, prices, now, lane)
    at = datetime.fromtimestamp(now, UTC)
    return cost(Tokens.of(usage), prices.find(model.name, model.provider, at, usage.prompt_tokens), lane)


def of_media(model: LanguageModel, request: MediaRequest, prices: PriceBook, now: float) -> tuple[Usage, Decimal]:
    """The tokens and the USD that it may take, where what it makes can be told from its request: by the unit or, speech
    whose price has none, by the token."""
    price = prices.find(model.name, model.provider, datetime.fromtimestamp(now, UTC))
    usage = request.likely_tokens if price and not price.unit else Usage()
    return usage, cost(Tokens.of(usage), price) + cost_of_units(request.likely_units, price)


def _message(message: ChatMessage) -> int:
    parts = message.content if isinstance(message.content, list) else ()
    attachments = sum(part.type != "text" for part in parts)
    calls = sum(_text(call.function.name) + _text(call.function.arguments) for call in message.tool_calls or ())
    return TOKENS_PER_MESSAGE + _text(message.text) + calls + TOKENS_PER_ATTACHMENT * attachments


def _texts(texts: Iterable[str | list[int]]) -> int:
    return sum(_text(text) if isinstance(text, str) else len(text) for text in texts)


def _text(text: str) -> int:
    num_bytes = len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
    return -(-num_bytes // BYTES_PER_TOKEN)
