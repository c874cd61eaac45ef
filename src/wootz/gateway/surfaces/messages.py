"""Anthropic's Messages API, ``/v1/messages`` and its token counting.

An answer is a list of blocks: thoughts, text, uses of tools, each begun, continued and ended. Anthropic counts what was
read from a prompt cache, and written to it, beside ``input_tokens``; our ``prompt_tokens`` include both. The counts are
known at the end, so they are told with ``message_delta`` (whose totals take the place of those at the start).

Source: https://platform.claude.com/docs/en/build-with-claude/streaming and the types of the ``anthropic`` SDK.
"""

from __future__ import annotations

import uuid
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from pydantic_core import from_json

from wootz.core import WootzError
from wootz.core.wire import ChatChunk, Usage
from wootz.gateway.entrance import STREAM, router_with_key, set_out
from wootz.gateway.gateway import Gateway
from wootz.gateway.surfaces.message_request import MessagesRequest, TokenCountRequest
from wootz.gateway.surfaces.surface import Event, Telling, tell

ROUTE = "/v1/messages"

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ErrorDetail(BaseModel):
    type: str
    message: str


class ErrorBody(BaseModel):
    type: Literal["error"]
    error: ErrorDetail
    request_id: str


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "The request can never succeed as it is written."},
    "default": {"model": ErrorBody, "description": "Any other failure."},
}


def router(gateway: Gateway) -> APIRouter:
    router = router_with_key(
        gateway, "inference", error_body=error_body, key_header="x-api-key", tags=["messages"], responses=ERRORS
    )

    @router.post(ROUTE, responses=STREAM)
    async def create_message(request: Request, body: MessagesRequest) -> Response:
        """An answer as a list of blocks, whole or as events."""
        chat, id = body.to_chat(), request.state.request_id
        set_out(request, chat)
        chunks = gateway.chat(request.state.key, chat, request_id=id, route=ROUTE)
        return tell(chunks, MessageTelling(body.model, id), stream=body.stream)

    @router.post(ROUTE + "/count_tokens")
    async def count_tokens(request: Request, body: TokenCountRequest) -> dict[str, int]:
        """How many tokens the model would read. Nothing is computed and nothing costs."""
        chat, id = body.to_chat(), request.state.request_id
        route = ROUTE + "/count_tokens"
        return {"input_tokens": await gateway.count_tokens(request.state.key, chat, request_id=id, route=route)}

    return router


def error_body(error: WootzError, request_id: str) -> dict[str, Any]:
    kind = ERROR_TYPES.get(error.status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": str(error)}, "request_id": request_id}


class MessageTelling(Telling):
    def __init__(self, model: str, request_id: str) -> None:
        self.model = model
        self.request_id = request_id
        self.id = f"msg_{uuid.uuid4().hex}"
        self.blocks: list[dict[str, Any]] = []
        self._begun = False
        self._open: tuple[str, int] | None = None
        """The kind of the block that is being told, and of a tool's use which one it is."""
        self._texts: list[str] = []
        self._cut: set[int] = set()
        self._usage = Usage()
        self._stop: dict[str, Any] = {"stop_reason": None, "stop_sequence": None}

    def chunk(self, chunk: ChatChunk) -> list[Event]:
        events: list[Event] = []
        if not self._begun:
            self._begun = True
            events += [{"type": "message_start", "message": self._message([])}, {"type": "ping"}]
        self._usage = chunk.usage or self._usage
        for choice in chunk.choices:
            delta = choice.delta
            if text := delta.reasoning_content:
                events += self._enter("thinking", {"type": "thinking", "thinking": "", "signature": ""})
                events.append(self._delta({"type": "thinking_delta", "thinking": text}, text))
            for block in delta.thinking_blocks or ():
                events += self._signed(block)
            if text := delta.content:
                events += self._enter("text", {"type": "text", "text": ""})
                events.append(self._delta({"type": "text_delta", "text": text}, text))
            for fragment in delta.tool_calls or ():
                events += self._tool_use(fragment)
            if choice.finish_reason is not None:
                self._finish(choice.finish_reason, choice.stop_reason)
        return events

    def end(self) -> list[Event]:
        events = self._leave()
        changed = {"type": "message_delta", "delta": self._stop, "usage": _usage(self._usage)}
        return [*events, changed, {"type": "message_stop"}]

    def failed(self, error: WootzError) -> list[Event]:
        return [error_body(error, self.request_id)]

    def whole(self) -> dict[str, Any]:
        """Without a tool's use that the answer was cut in: it is none."""
        return self._message([block for place, block in enumerate(self.blocks) if place not in self._cut])

    # --- blocks ---------------------------------------------------------------------------------------------------

    def _enter(self, kind: str, block: dict[str, Any], call: int = 0) -> list[Event]:
        if self._open == (kind, call):
            return []
        events = self._leave()
        self._open, self._texts = (kind, call), []
        self.blocks.append(block)
        return [*events, {"type": "content_block_start", "index": len(self.blocks) - 1, "content_block": dict(block)}]

    def _delta(self, delta: dict[str, Any], text: str) -> Event:
        self._texts.append(text)
        return {"type": "content_block_delta", "index": len(self.blocks) - 1, "delta": delta}

    def _leave(self) -> list[Event]:
        if self._open is None:
            return []
        (kind, _), self._open = self._open, None
        place, text = len(self.blocks) - 1, "".join(self._texts)
        if kind == "tool_use":
            try:
                self.blocks[-1]["input"] = from_json(text) if text.strip() else {}
            except ValueError:
                self._cut.add(place)
        elif kind in ("text", "thinking"):
            self.blocks[-1][kind] = text
        return [{"type": "content_block_stop", "index": place}]

    def _signed(self, block: dict[str, Any]) -> list[Event]:
        """A whole block of thoughts, whose text has been told already; or one that is hidden."""
        if block.get("type") == "redacted_thinking":
            return [*self._enter("redacted", dict(block)), *self._leave()]
        events = self._enter("thinking", {"type": "thinking", "thinking": "", "signature": ""})
        signature = self.blocks[-1]["signature"] = block.get("signature") or ""
        delta = {"type": "signature_delta", "signature": signature}
        return [*events, self._delta(delta, ""), *self._leave()]

    def _tool_use(self, fragment: dict[str, Any]) -> list[Event]:
        function, index = fragment.get("function") or {}, fragment.get("index", 0)
        block = {"type": "tool_use", "id": fragment.get("id") or "", "name": function.get("name") or "", "input": {}}
        events = self._enter("tool_use", block, index)
        if fragment.get("incomplete"):
            self._cut.add(len(self.blocks) - 1)
        if arguments := function.get("arguments"):
            events.append(self._delta({"type": "input_json_delta", "partial_json": arguments}, arguments))
        return events

    # --- the message ----------------------------------------------------------------------------------------------

    def _finish(self, reason: str, stopped_by: Any) -> None:
        self._stop = {"stop_reason": STOP_REASONS.get(reason, "end_turn"), "stop_sequence": None}
        if reason == "stop" and isinstance(stopped_by, str):
            self._stop = {"stop_reason": "stop_sequence", "stop_sequence": stopped_by}

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": content}
        return {**head, **self._stop, "usage": _usage(self._usage)}


def _usage(counted: Usage) -> dict[str, int]:
    read, written = counted.cached_tokens, counted.cache_write_tokens
    return {
        "input_tokens": counted.prompt_tokens - read - written,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": read,
        "output_tokens": counted.completion_tokens,
    }
