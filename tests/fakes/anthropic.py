"""Anthropic's Messages API as far as its documentation tells: requests must be of the ``anthropic`` package's types.

The event sequences are those of https://platform.claude.com/docs/en/build-with-claude/streaming, shortened.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from anthropic.types import MessageCountTokensParams, MessageCreateParams
from fastapi import Request
from pydantic import TypeAdapter
from pydantic_core import ValidationError

from fakes.far_end import SECRET, FarEnd

REQUEST: TypeAdapter[Any] = TypeAdapter(MessageCreateParams)
COUNT_REQUEST: TypeAdapter[Any] = TypeAdapter(MessageCountTokensParams)

SAMPLING = ("temperature", "top_p", "top_k")
"""Removed in the version that the SDK speaks; of the one before, models up to Claude 4.6 heed them."""

USAGE = {
    "input_tokens": 25,
    "cache_creation_input_tokens": 100,
    "cache_read_input_tokens": 2000,
    "output_tokens": 1,
    "service_tier": "standard",
}


class Anthropic(FarEnd):
    def check(self, request: Request, body: dict[str, Any]) -> None:
        if request.url.path == "/v1/messages/count_tokens":
            return assert_of_sdk_type(body, COUNT_REQUEST)
        assert request.url.path == "/v1/messages"
        key = request.headers.get("x-api-key") or request.headers.get("authorization")
        assert key in (SECRET, f"Bearer {SECRET}"), "no key"
        older = request.headers["anthropic-version"] == "2023-06-01"
        assert older or request.headers["anthropic-version"] == "2026-10-21", "no version"
        assert_of_sdk_type({name: value for name, value in body.items() if not (older and name in SAMPLING)})
        thinking = body.get("thinking") or {}
        if thinking.get("type") == "enabled":
            assert 1024 <= thinking["budget_tokens"] < body["max_tokens"], "budget_tokens"
        pending: set[str] = set()
        for message in body["messages"]:
            results = {block["tool_use_id"] for block in message["content"] if block["type"] == "tool_result"}
            assert results == pending, "tool_use ids were found without tool_result blocks immediately after"
            pending = {block["id"] for block in message["content"] if block["type"] == "tool_use"}
            if pending and thinking.get("type") in ("enabled", "adaptive"):
                assert message["content"][0]["type"].endswith("thinking"), "Expected thinking"

    def encode(self, events: list[dict[str, Any]]) -> Iterable[str]:
        return (f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)


def assert_of_sdk_type(body: dict[str, Any], kind: TypeAdapter[Any] = REQUEST) -> None:
    try:
        typed = _materialised(kind.validate_python(body))
    except ValidationError as error:
        raise AssertionError(str(error)) from None
    assert typed == body, f"fields that the SDK's types don't have: {typed} instead of {body}"


def _materialised(value: Any) -> Any:
    """pydantic validates an Iterable when it is iterated."""
    if isinstance(value, dict):
        return {key: _materialised(one) for key, one in value.items()}
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        return value
    return [_materialised(one) for one in value]


# --- event sequences ---------------------------------------------------------------------------------------------


def start(**usage: Any) -> list[dict[str, Any]]:
    message = {
        "id": "msg_1nZdL29xx5MUA1yADyHTEsnR8uuvGzszyY", "type": "message", "role": "assistant", "content": [],
        "model": "claude-opus-4-8", "stop_reason": None, "stop_sequence": None, "usage": {**USAGE, **usage},
    }  # fmt: skip
    return [{"type": "message_start", "message": message}, {"type": "ping"}]


def block(index: int, begun: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"type": "content_block_start", "index": index, "content_block": begun},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def text(index: int, *pieces: str) -> list[dict[str, Any]]:
    deltas = [{"type": "text_delta", "text": piece} for piece in pieces]
    return block(index, {"type": "text", "text": ""}, *deltas)


def thinking(index: int, signature: str, *pieces: str) -> list[dict[str, Any]]:
    deltas = [{"type": "thinking_delta", "thinking": piece} for piece in pieces]
    begun = {"type": "thinking", "thinking": "", "signature": ""}
    return block(index, begun, *deltas, {"type": "signature_delta", "signature": signature})


def tool_use(index: int, id: str, name: str, *pieces: str) -> list[dict[str, Any]]:
    deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
    return block(index, {"type": "tool_use", "id": id, "name": name, "input": {}}, *deltas)


def end(reason: str = "end_turn", output_tokens: int = 15, thinking_tokens: int | None = None) -> list[dict[str, Any]]:
    usage: dict[str, Any] = {"output_tokens": output_tokens}
    if thinking_tokens:
        usage["output_tokens_details"] = {"thinking_tokens": thinking_tokens}
    delta = {"stop_reason": reason, "stop_sequence": None}
    return [{"type": "message_delta", "delta": delta, "usage": usage}, {"type": "message_stop"}]


HELLO = [*start(), *text(0, "Hello", "!"), *end()]

TOOLS = [
    *start(),
    *text(0, "Okay, let me check."),
    *tool_use(1, "toolu_01T1x1fJ34qAmk2tNTrN7Up6", "get_weather", "", '{"location":', ' "San Francisco, CA"}'),
    *tool_use(2, "toolu_01T1x1fJ34qAmk2tNTrN7Up7", "get_time", ""),
    *end("tool_use", 89),
]

THINKING = [
    *start(),
    *thinking(0, "EqQBCgIYAhIM1gbcDa9GJwZA2b3hGgxBdjrkzLoky3dl1pk", "27 * 453", " = 12231"),
    *block(1, {"type": "redacted_thinking", "data": "EmwKAhgBEgy3va3pzix"}),
    *text(2, "12,231"),
    *end(output_tokens=40, thinking_tokens=30),
]
