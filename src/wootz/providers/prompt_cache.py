"""Providers keep the beginning of prompts; some of them must be told where it ends. The application need not know.

Three habits, by provider (`RULES`, dated): *marks* (Anthropic; Qwen models on DashScope): the request says after which
parts the provider is to keep what it has read, for 5 minutes, at a surcharge, and to look for what it kept. *key*
(OpenAI): caching is automatic, and a ``prompt_cache_key`` sends requests with one beginning to one machine.
*automatic*: nothing to do.

Marks go where the stable part ends: after the system prompt (which stands behind the tools), and after the last message
of a conversation that has begun, so that its next turn reads all of it. A beginning that is shorter than the provider
keeps gets none, and a single question never: it would be kept for nobody. Whoever sets marks of their own keeps those.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import lru_cache
from typing import Literal
from urllib.parse import urlsplit

from wootz.core.wire import ChatMessage, ChatRequest, ContentPart
from wootz.providers.endpoint import Endpoint

MARK = {"cache_control": {"type": "ephemeral"}}
CHARS_PER_TOKEN = 4
"""Of English in common vocabularies; other scripts have fewer, so their beginnings are marked a little late."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Of models whose names begin with ``prefix``; the first that fits holds. Prices are parts of the input price."""

    provider: str
    prefix: str
    how: Literal["marks", "key", "automatic"]
    min_tokens: int
    read_price: Decimal
    write_price: Decimal = Decimal(1)
    max_marks: int = 0


AS_OF = date(2026, 11, 28)
"""Sources: the providers' pages on prompt and context caching. Anthropic's minimum differs by model."""

_ANTHROPIC = {"read_price": Decimal("0.1"), "write_price": Decimal("1.25"), "max_marks": 4}
_QWEN = "qwen3-max", "qwen-plus", "qwen3.5-plus", "qwen3.6-plus", "qwen-flash", "qwen3.5-flash", "qwen3-coder"
RULES = (
    Rule("anthropic", "claude-opus-5", "marks", 512, **_ANTHROPIC),
    Rule("anthropic", "claude-haiku-4-5", "marks", 4096, **_ANTHROPIC),
    Rule("anthropic", "claude-opus-4-5", "marks", 4096, **_ANTHROPIC),
    Rule("anthropic", "claude-opus-4-6", "marks", 4096, **_ANTHROPIC),
    Rule("anthropic", "claude-3-haiku", "marks", 2048, **_ANTHROPIC),
    Rule("anthropic", "claude-3-5-haiku", "marks", 2048, **_ANTHROPIC),
    Rule("anthropic", "", "marks", 1024, **_ANTHROPIC),
    *(Rule("dashscope", prefix, "marks", 1024, Decimal("0.1"), Decimal("1.25"), 4) for prefix in _QWEN),
    Rule("dashscope", "", "automatic", 256, Decimal("0.2")),
    Rule("openai", "", "key", 1024, Decimal("0.5")),
    Rule("gemini", "", "automatic", 1024, Decimal("0.25")),
    Rule("deepseek", "", "automatic", 64, Decimal("0.1")),
)


def rule_of(provider: str, model: str) -> Rule | None:
    """None where nobody knows that the provider keeps anything."""
    return next((rule for rule in RULES if rule.provider == provider and model.startswith(rule.prefix)), None)


def prepare_for(request: ChatRequest, endpoint: Endpoint) -> ChatRequest:
    """`prepare` for who answers there. Others who speak OpenAI's protocol may refuse a field that they do not know."""
    if not endpoint.prompt_cache:
        return request
    provider = endpoint.kind.removesuffix("-compatible")
    if provider == "openai" and _host(endpoint.base_url) != "api.openai.com":
        return request
    return prepare(request, provider, endpoint.upstream_model)


@lru_cache
def _host(url: str) -> str | None:
    return urlsplit(url).hostname


def prepare(request: ChatRequest, provider: str, model: str) -> ChatRequest:
    """The request with what the provider wants to be told, or itself. ``model`` is the upstream's name."""
    rule = rule_of(provider, model)
    if rule is None or rule.how == "automatic" or _has_own(request):
        return request
    places = _stable_ends(request, rule.min_tokens)
    if rule.how == "key":
        if not places or (request.model_extra or {}).get("prompt_cache_key"):
            return request
        prepared = request.model_copy()
        prepared.__pydantic_extra__ = (request.model_extra or {}) | {"prompt_cache_key": _cache_key(request, places[0])}
        prepared.model_fields_set.add("prompt_cache_key")
        return prepared
    if not places:
        return request
    messages = list(request.messages)
    for place in places[-rule.max_marks :]:
        messages[place] = _marked(messages[place])
    return request.model_copy(update={"messages": messages})


def _stable_ends(request: ChatRequest, min_tokens: int) -> list[int]:
    """Indices of the messages after which the prompt is worth keeping."""
    ends, num_chars = [], sum(len(tool.model_dump_json()) for tool in request.tools or ())
    talking = any(message.role == "assistant" for message in request.messages)
    for place, message in enumerate(request.messages):
        num_chars += len(message.text)
        after = request.messages[place + 1] if place + 1 < len(request.messages) else None
        ends_system = message.role in _SYSTEM and (after is None or after.role not in _SYSTEM)
        if (ends_system or (talking and after is None)) and num_chars >= min_tokens * CHARS_PER_TOKEN:
            ends.append(place)
    return ends


_SYSTEM = ("system", "developer")


def _marked(message: ChatMessage) -> ChatMessage:
    """The mark is on the last part that has text."""
    parts: Sequence[ContentPart]
    if isinstance(message.content, list):
        parts = message.content
    elif message.content:
        parts = [ContentPart(type="text", text=message.content)]
    else:
        return message
    last = parts[-1].model_copy()
    last.__pydantic_extra__ = (parts[-1].model_extra or {}) | MARK
    last.model_fields_set.add("cache_control")
    return message.model_copy(update={"content": [*parts[:-1], last]})


def _has_own(request: ChatRequest) -> bool:
    parts = (part for message in request.messages if isinstance(message.content, list) for part in message.content)
    marked = (*parts, *request.messages, *(request.tools or ()))
    return any("cache_control" in (one.model_extra or {}) for one in marked)


def _cache_key(request: ChatRequest, place: int) -> str:
    """Of the tenant and the beginning: equal for all who share it, telling the provider neither."""
    digest = hashlib.sha256(request.journey.tenant.encode())
    for tool in request.tools or ():
        digest.update(tool.model_dump_json().encode())
    for message in request.messages[: place + 1]:
        digest.update(message.model_dump_json().encode())
    return digest.hexdigest()[:32]
