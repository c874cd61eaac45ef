"""Endpoints that speak OpenAI's protocol, each with its habits: ``http://…/KIND/v1``.

They refuse what the real ones refuse, and answer in their own words. Sources: OpenAI's API reference;
https://api-docs.deepseek.com; https://help.aliyun.com/en/model-studio/deep-thinking; https://docs.ollama.com/api;
vLLM's documentation of its server.
"""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import AsyncGenerator, Iterable
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming
from pydantic import TypeAdapter, ValidationError

from fakes.far_end import SECRET, FarEnd

REQUEST: TypeAdapter[Any] = TypeAdapter(CompletionCreateParamsStreaming)
OLDER = ("deepseek", "ollama", "dashscope-compatible")


class OpenAI(FarEnd):
    """Of speech, ``answer`` has the pieces; an `Exception` cuts the connection, ... hangs."""

    def __init__(self) -> None:
        super().__init__()
        self.left = threading.Event()
        """Set when a client went away in the middle of a speech."""

    def check(self, request: Request, body: dict[str, Any]) -> None:
        kind = request.url.path.split("/")[1]
        assert request.headers.get("authorization") == f"Bearer {SECRET}", "no key"
        if request.url.path.endswith("/audio/speech"):
            known = {"input", "model", "voice", "instructions", "response_format", "speed", "stream_format"}
            assert set(body) <= known, f"unknown: {set(body) - known}"
            assert not body["model"].startswith("tts-1") or body.get("stream_format") != "sse", "sse is not supported"
        if not request.url.path.endswith("/chat/completions"):
            return
        try:
            REQUEST.validate_python(body)
        except ValidationError as error:
            raise AssertionError(str(error)) from None
        roles = {message["role"] for message in body["messages"]}
        if kind in OLDER:
            assert "developer" not in roles, "developer is not one of ['system', 'assistant', 'user', 'tool']"
            assert "max_completion_tokens" not in body, "max_completion_tokens would be dropped in silence"
        if kind == "openai" and body["model"].startswith(("o", "gpt-5")):
            assert "max_tokens" not in body, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        if body.get("enable_thinking"):
            assert body.get("stream"), "parameter.enable_thinking must be set to false for non-streaming calls"
        if body.get("stream"):
            assert body["stream_options"]["include_usage"], "spend would be unknown"

    def respond(self, answer: list[Any], body: dict[str, Any]) -> Response:
        if "voice" in body:
            events = body.get("stream_format") == "sse"
            kind = "text/event-stream" if events else f"audio/{body.get('response_format', 'mpeg')}"
            return StreamingResponse(self._speech(answer, events), media_type=kind)
        if "input" in body:
            vector = {"object": "embedding", "index": 0, "embedding": [0.5, -1.0]}
            usage = {"prompt_tokens": 3, "total_tokens": 3}
            return JSONResponse({"object": "list", "data": [vector], "model": body["model"], "usage": usage})
        return super().respond(answer, body)

    async def _speech(self, sound: list[Any], events: bool) -> AsyncGenerator[bytes, None]:
        def event(**data: Any) -> bytes:
            return f"data: {json.dumps(data)}\n\n".encode()

        finished = False
        try:
            for piece in sound:
                if piece is ...:
                    await asyncio.Event().wait()
                if isinstance(piece, Exception):
                    raise piece
                encoded = base64.b64encode(piece).decode()
                yield event(type="speech.audio.delta", audio=encoded) if events else piece
            if events:
                yield event(type="speech.audio.done", usage=SPEECH_USAGE)
            finished = True
        finally:
            if not finished:
                self.left.set()

    def encode(self, events: list[Any]) -> Iterable[str]:
        return (f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in events)


def chunk(*choices: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG", "object": "chat.completion.chunk", "created": 1741570283,
        "model": "theirs", "choices": list(choices), **fields,
    }  # fmt: skip


def said(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return chunk({"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish})


def tool_call(index: int, **fields: Any) -> list[dict[str, Any]]:
    function = {key: fields.pop(key) for key in ("name", "arguments") if key in fields}
    return [{"index": index, **fields, "function": function}]


SPEECH_USAGE = {"input_tokens": 14, "output_tokens": 101, "total_tokens": 115}

USAGE = {"prompt_tokens": 40, "completion_tokens": 10, "total_tokens": 50}

HELLO = [said(role="assistant", content=""), said(content="Hello"), said(content="!"), said("stop"),
         chunk(usage=USAGE), "[DONE]"]  # fmt: skip

PARALLEL_TOOLS = [
    said(role="assistant", content=None,
         tool_calls=tool_call(0, id="call_1", type="function", name="get_weather", arguments="")),
    said(tool_calls=tool_call(0, arguments='{"location":')),
    said(tool_calls=tool_call(1, id="call_2", type="function", name="get_time", arguments="")),
    said(tool_calls=tool_call(0, arguments=' "Paris"}')),
    said(tool_calls=tool_call(1, arguments="{}")),
    said("tool_calls"),
    chunk(usage=USAGE),
    "[DONE]",
]  # fmt: skip

OPENAI_REASONED = [
    *HELLO[:-2],
    chunk(usage={**USAGE, "prompt_tokens_details": {"cached_tokens": 32, "audio_tokens": 0},
                 "completion_tokens_details": {"reasoning_tokens": 6, "accepted_prediction_tokens": 0}}),
    "[DONE]",
]  # fmt: skip

DASHSCOPE_THOUGHT = [
    said(role="assistant", content=None, reasoning_content=""),
    said(content=None, reasoning_content="27 x 453"),
    said(content="12,231", reasoning_content=None),
    said("stop", content="", reasoning_content=None),
    chunk(usage={**USAGE, "prompt_tokens_details": {"cached_tokens": 32},
                 "completion_tokens_details": {"reasoning_tokens": 6}}),
    "[DONE]",
]  # fmt: skip

DEEPSEEK_THOUGHT = [
    said(role="assistant", content=None, reasoning_content="27 x"),
    said(content=None, reasoning_content=" 453"),
    said(content="12,231", reasoning_content=None),
    {**said("stop", content="", reasoning_content=None),
     "usage": {**USAGE, "prompt_tokens_details": None, "prompt_cache_hit_tokens": 32, "prompt_cache_miss_tokens": 8,
               "completion_tokens_details": {"reasoning_tokens": 6}}},
    "[DONE]",
]  # fmt: skip

OLLAMA_THOUGHT = [
    said(role="assistant", content="", reasoning="27 x 453"),
    said(role="assistant", content="12,231"),
    said("stop", role="assistant", content=""),
    chunk(usage=USAGE),
    "[DONE]",
]

OLLAMA_TOOL = [
    said(role="assistant", content="", tool_calls=tool_call(0, id="call_1", type="function", name="get_weather",
                                                            arguments={"location": "Paris"})),
    said("tool_calls", role="assistant", content=""),
    chunk(usage=USAGE),
    "[DONE]",
]  # fmt: skip

VLLM_THOUGHT = [
    said(role="assistant", content="", reasoning_content=None),
    said(reasoning="27 x 453", reasoning_content="27 x 453"),
    said("stop", content="12,231"),
    chunk(usage={**USAGE, "prompt_tokens_details": {"cached_tokens": 32}}),
    "[DONE]",
]
