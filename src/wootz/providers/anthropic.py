"""Anthropic's Messages API as a `LanguageModel`.

Its stream tells a message in blocks: thinking, text, the use of a tool, each begun, continued and ended by events with
its index. Ours tells a delta at a time. A block of thinking is text for the user (``reasoning_content``) as it comes,
and once more as a whole when it ends (``thinking_blocks``), with the signature that Anthropic wants back.

Anthropic counts what it read from its cache and wrote to it beside ``input_tokens``; OpenAI's ``prompt_tokens``, and so
ours, include both.

Source: https://platform.claude.com/docs/en/build-with-claude/streaming, …/docs/en/api/versioning, and the types of the
``anthropic`` package.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from pydantic_core import from_json

from wootz.core import LanguageModel, UpstreamError
from wootz.core.wire import ChatChunk, ChatRequest, ChunkChoice, Delta, FinishReason, Usage, new_id, now
from wootz.providers.anthropic_request import COUNTED, SAMPLING, messages_request
from wootz.providers.capabilities import capabilities_of, check
from wootz.providers.endpoint import Endpoint
from wootz.providers.http import Http
from wootz.providers.prompt_cache import prepare_for
from wootz.providers.upstream_errors import error_from_event

VERSION, OLDER_VERSION = "2026-10-21", "2023-06-01"
"""The newer one has no sampling parameters; models up to Claude 4.6 heed them by the older one."""

FINISH_REASONS: Mapping[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
}


class AnthropicModel(LanguageModel):
    def __init__(self, endpoint: Endpoint) -> None:
        self.name = endpoint.name
        self.endpoint = endpoint
        self.capabilities = capabilities_of("anthropic", endpoint.upstream_model)
        self._http = Http(endpoint, "x-api-key", scheme="")
        self.provider = self._http.host

    def chat(self, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        return self._http.in_time(self._chat(request))

    async def count_tokens(self, request: ChatRequest) -> int:
        """Asks the endpoint, which does not charge for it."""
        body = messages_request(request, self.endpoint.upstream_model, self.capabilities)
        counted = await self._http.json("messages/count_tokens", {name: body[name] for name in COUNTED if name in body})
        try:
            return int(from_json(counted)["input_tokens"])
        except (ValueError, KeyError, TypeError):
            message = f'model "{self.name}": what the endpoint answered is not Anthropic\'s protocol'
            raise UpstreamError(message, code="upstream_malformed") from None

    async def close(self) -> None:
        await self._http.close()

    async def _chat(self, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        check(self.capabilities, request)
        body = messages_request(prepare_for(request, self.endpoint), self.endpoint.upstream_model, self.capabilities)
        version = OLDER_VERSION if SAMPLING & body.keys() else VERSION
        answer = _Answer(self.name)
        async with aclosing(self._http.events("messages", body, {"anthropic-version": version})) as events:
            async for data in events:
                try:
                    event = from_json(data, allow_inf_nan=False)
                    if event["type"] == "error":
                        raise error_from_event(event["error"], self.endpoint)
                    delta, finish_reason = answer.read(event)
                except (ValueError, KeyError, TypeError, IndexError):
                    message = f'model "{self.name}": what the endpoint answered is not Anthropic\'s protocol'
                    raise UpstreamError(message, code="upstream_malformed") from None
                if delta is not None:
                    yield answer.chunk(delta, finish_reason)
                if answer.ended:
                    break
        if not answer.ended:
            raise UpstreamError(f'model "{self.name}": the endpoint cut its answer short', code="upstream_cut_off")
        yield answer.last()


class _Answer:
    """One message while it is told."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.id = new_id("chatcmpl")
        self.created = now()
        self.ended = False
        self._role: str | None = "assistant"
        self._blocks: dict[int, dict[str, Any]] = {}
        self._num_calls = 0
        self._usage: dict[str, Any] = {}

    def read(self, event: Mapping[str, Any]) -> tuple[Delta | None, FinishReason | None]:
        """What an event adds for the user, if anything. Raises KeyError and its kind for what is not the protocol."""
        match event["type"]:
            case "message_start":
                self._count(event["message"]["usage"])
            case "content_block_start":
                return self._begin(event["index"], event["content_block"]), None
            case "content_block_delta":
                return self._continue(self._blocks[event["index"]], event["delta"]), None
            case "content_block_stop":
                return self._end(self._blocks.pop(event["index"])), None
            case "message_delta":
                self._count(event.get("usage") or {})
                if reason := event["delta"].get("stop_reason"):
                    return Delta(), FINISH_REASONS.get(reason, "stop")
            case "message_stop":
                self.ended = True
        return None, None  # Pings, and what may come to be: clients are told to pass over events they don't know.

    def chunk(self, delta: Delta, finish_reason: FinishReason | None) -> ChatChunk:
        delta.role, self._role = self._role, None
        choice = ChunkChoice(delta=delta, finish_reason=finish_reason)
        return ChatChunk(id=self.id, created=self.created, model=self.model, choices=[choice])

    def last(self) -> ChatChunk:
        return ChatChunk(id=self.id, created=self.created, model=self.model, choices=[], usage=self._total())

    def _begin(self, index: int, block: dict[str, Any]) -> Delta | None:
        self._blocks[index] = block
        match block["type"]:
            case "tool_use":
                block["place"], block["told"] = self._num_calls, ""
                self._num_calls += 1
                call = {"id": block["id"], "type": "function", "function": {"name": block["name"], "arguments": ""}}
                return Delta(tool_calls=[{"index": block["place"], **call}])
            case "text" if block["text"]:
                return Delta(content=block["text"])
            case "thinking" if block["thinking"]:
                return Delta(reasoning_content=block["thinking"])
        return None

    def _continue(self, block: dict[str, Any], delta: Mapping[str, Any]) -> Delta | None:
        match delta["type"]:
            case "text_delta":
                return Delta(content=delta["text"])
            case "thinking_delta":
                block["thinking"] += delta["thinking"]
                return Delta(reasoning_content=delta["thinking"])
            case "signature_delta":
                block["signature"] = (block.get("signature") or "") + delta["signature"]
            case "input_json_delta" if delta["partial_json"]:
                block["told"] += delta["partial_json"]
                return Delta(tool_calls=[{"index": block["place"], "function": {"arguments": delta["partial_json"]}}])
        return None

    def _end(self, block: dict[str, Any]) -> Delta | None:
        if block["type"] in ("thinking", "redacted_thinking"):
            return Delta(thinking_blocks=[block])
        if block["type"] == "tool_use" and not block["told"]:  # A call without arguments streams none.
            return Delta(tool_calls=[{"index": block["place"], "function": {"arguments": "{}"}}])
        return None

    def _count(self, usage: Mapping[str, Any]) -> None:
        """Later events repeat the counts, cumulated, with null for what they don't know."""
        for name, value in usage.items():
            if isinstance(value, dict if name == "output_tokens_details" else int):
                self._usage[name] = value

    def _total(self) -> Usage:
        said = self._usage
        cached, written = said.get("cache_read_input_tokens", 0), said.get("cache_creation_input_tokens", 0)
        return Usage.count(
            said.get("input_tokens", 0) + cached + written,
            said.get("output_tokens", 0),
            cached=cached,
            cache_write=written,
            reasoning=(said.get("output_tokens_details") or {}).get("thinking_tokens", 0),
        )
