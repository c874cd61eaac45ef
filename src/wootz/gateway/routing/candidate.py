"""What a policy sees: the targets of a route with how they do now, and facts about the request. Nothing here changes
anything, so a policy is a pure function from these to an order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from wootz.core.tool_wire import ModelRequest
from wootz.core.wire import ChatMessage, ChatRequest, CompletionRequest, EmbeddingRequest, RerankRequest, SamplingFields
from wootz.telemetry.prices import Price


@dataclass(slots=True, kw_only=True)
class Candidate:
    name: str
    weight: int = 1
    region: str | None = None
    tags: Sequence[str] = ()
    capacity: int | None = None
    price: Callable[[int], Price | None] = lambda num_prompt_tokens: None
    """What it costs now for a prompt of so many tokens; None when nobody knows."""
    in_flight: int = 0
    first_token: float | None = None
    """Seconds on average; None when it is not known."""
    inter_token: float | None = None


Policy = Callable[[Sequence[Candidate], ModelRequest], list[Candidate]]
"""All candidates or some, the one to ask first in front."""

USUAL_ANSWER_TOKENS = 256
"""Of an answer whose request sets no bound."""
CHARS_PER_TOKEN = 4


def texts(request: ModelRequest) -> list[str]:
    """What the model is to read, as far as it is text."""
    if isinstance(request, ChatRequest):
        return [message.text for message in request.messages]
    if isinstance(request, RerankRequest):
        return [request.query, *request.texts]
    inputs: Any = request.prompts if isinstance(request, CompletionRequest) else getattr(request, "input", "")
    return [inputs] if isinstance(inputs, str) else [text for text in inputs if isinstance(text, str)]


def num_chars(request: ModelRequest) -> int:
    return sum(len(text) for text in texts(request))


def prompt_tokens(request: ModelRequest) -> int:
    """Roughly: four characters of Latin script make a token, one of any other does."""
    return sum((len(text) + 3 * (len(text.encode(errors="replace")) - len(text)) // 2) // 4 for text in texts(request))


def answer_tokens(request: ModelRequest) -> int:
    """At most, where the request bounds it."""
    if isinstance(request, (EmbeddingRequest, RerankRequest)):
        return 0
    bound = getattr(request, "max_completion_tokens", None) or getattr(request, "max_tokens", None)
    return min(bound or USUAL_ANSWER_TOKENS, 32 * USUAL_ANSWER_TOKENS)


def last_text(request: ModelRequest) -> str:
    """What was asked just now: the last text of a user, which may come before tool results."""
    if isinstance(request, ChatRequest):
        return next((message.text for message in reversed(request.messages) if message.role == "user"), "")
    return next(iter(reversed(texts(request))), "")


def offers_tools(request: ModelRequest) -> bool:
    return bool(getattr(request, "tools", None))


def has_images(request: ModelRequest) -> bool:
    """Or sounds, or files: parts that are not text."""

    def is_mixed(message: ChatMessage) -> bool:
        return isinstance(message.content, list) and any(part.type != "text" for part in message.content)

    return isinstance(request, ChatRequest) and any(map(is_mixed, request.messages))


def wants_structure(request: ModelRequest) -> bool:
    return isinstance(request, SamplingFields) and bool(request.structures)
