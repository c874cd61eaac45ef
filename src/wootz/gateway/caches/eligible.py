"""Which requests may be answered from a cache, and which answers may be kept.

A request is deterministic at temperature 0 or with a seed; what a model's own default is we know for local models only.
One whose answer depends on more than its text (a page at a URL, a search of the web, a file by its id) is never cached:
what it points to is not part of the key.

Kept are whole answers: every choice ended by itself or in tool calls. One that was cut at the request's *own* limit is
what was asked for, and the limit is in the key (a classifier asks for one token); one that was cut otherwise, or by a
filter, is not kept, nor is an empty one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from pydantic import TypeAdapter

from wootz.core.sections import SamplingConfig
from wootz.core.wire import ChatChunk, ChatRequest, Completion, ContentPart, SamplingFields

Chunk = TypeVar("Chunk", ChatChunk, Completion)

LIVE_FIELDS = ("web_search_options", "enable_search", "search_options", "search_parameters", "plugins", "store")
"""Other providers' fields that make an answer depend on the world, or leave something behind there."""

_ADAPTERS = {ChatChunk: TypeAdapter(list[ChatChunk]), Completion: TypeAdapter(list[Completion])}


def is_deterministic(request: SamplingFields, defaults: SamplingConfig | None) -> bool:
    temperature = request.temperature
    if temperature is None and defaults is not None:
        temperature = defaults.temperature
    return temperature == 0 or request.seed is not None


def depends_on_more(request: SamplingFields) -> str | None:
    """What the answer depends on beside the request, in words."""
    extra = request.model_extra or {}
    if field := next((name for name in LIVE_FIELDS if extra.get(name)), None):
        return f'"{field}"'
    if isinstance(request, ChatRequest):
        if any(tool.type != "function" for tool in request.tools or ()):
            return "a tool that the provider runs"
        parts = (part for message in request.messages if isinstance(message.content, list) for part in message.content)
        if any(not _is_self_contained(part) for part in parts):
            return "content by reference"
    return None


def is_plain_question(request: SamplingFields, max_chars: int) -> bool:
    """Whether meaning may decide: text only, no tools, no demanded structure, ending in a short message of the user."""
    if not isinstance(request, ChatRequest) or request.tools or request.structures or (request.n or 1) > 1:
        return False
    last = request.messages[-1]
    if last.role != "user" or not 0 < len(last.text.strip()) <= max_chars or request.logprobs:
        return False
    return all(
        part.type == "text"
        for message in request.messages
        if isinstance(message.content, list)
        for part in message.content
    )


def is_whole(chunks: Sequence[ChatChunk | Completion], request: SamplingFields) -> bool:
    """Whether this answer may be kept."""
    if not chunks or chunks[-1].usage is None:
        return False
    own_limit = request.max_tokens is not None or getattr(request, "max_completion_tokens", None) is not None
    good = {"stop", "tool_calls", *(["length"] if own_limit else [])}
    reasons = {
        choice.index: choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason
    }
    begun = {choice.index for chunk in chunks for choice in chunk.choices}
    return bool(begun) and begun == set(reasons) and set(reasons.values()) <= good and any(map(_says_something, chunks))


def encode(chunks: Sequence[ChatChunk | Completion]) -> bytes:
    return b"[" + b",".join(chunk.model_dump_json().encode() for chunk in chunks) + b"]"


def decode(body: bytes, chunk_type: type[Chunk]) -> list[Chunk]:
    return _ADAPTERS[chunk_type].validate_json(body)


def _is_self_contained(part: ContentPart) -> bool:
    if part.type == "text":
        return True
    extra = part.model_extra or {}
    if part.type == "image_url":
        image = extra.get("image_url")
        url = image.get("url") if isinstance(image, dict) else image
        return isinstance(url, str) and url.startswith("data:")
    return part.type == "input_audio"


def _says_something(chunk: ChatChunk | Completion) -> bool:
    if isinstance(chunk, Completion):
        return any(choice.text for choice in chunk.choices)
    return any(choice.delta.content or choice.delta.tool_calls for choice in chunk.choices)
