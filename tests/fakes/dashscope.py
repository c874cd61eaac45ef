"""A DashScope to talk to: its native endpoints and tasks on a real socket, as its reference and SDK have them.

It is strict about requests (a wrong content shape, a missing header or key is refused as DashScope does), remembers
them, and says what it is told to. That it is like the real one is shown by the official SDK, which is its client in
``tests/providers/test_dashscope_fake.py``.
"""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

KEY = "sk-dashscope-secret-0123456789"
TASKS = (
    "aigc/text2image/image-synthesis",
    "aigc/image2image/image-synthesis",
    "aigc/image-generation/generation",
    "aigc/video-generation/video-synthesis",
    "audio/asr/transcription",
)
USAGE = {"input_tokens": 11, "output_tokens": 5, "total_tokens": 16}


@dataclass
class Says:
    """What the next answers are. A piece is a message's new part; an `Exception` cuts the connection, ... hangs."""

    pieces: list[Any] = field(default_factory=lambda: [{"content": "Hel"}, {"content": "lo"}])
    finish_reason: str = "stop"
    usage: dict[str, Any] = field(default_factory=lambda: dict(USAGE))
    output: dict[str, Any] = field(default_factory=dict)
    """More fields of every event's output."""
    multimodal_only: tuple[str, ...] = ()
    failure: tuple[int, str, str] | None = None
    """Status, code and message, at once."""
    late_failure: tuple[str, str] | None = None
    """Code and message, after the pieces."""
    task_states: list[dict[str, Any]] = field(default_factory=lambda: [{"task_status": "RUNNING"}])
    """What a task is at its next polls; its last one stays."""
    poll_failure: tuple[int, str, str] | None = None
    sound: list[Any] = field(default_factory=lambda: [b"\1\0\2\0", b"\3\0"])
    """Pieces of streamed speech; a text is sent as it is instead of in base64."""
    speech_usage: dict[str, Any] | None = None
    """Default: the characters of the text."""
    stops: bool = True
    """Whether streamed speech has its last event."""


class FakeDashScope:
    def __init__(self) -> None:
        self.says = Says()
        self.requests: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        """Path, body and headers of each."""
        self.tasks: dict[str, dict[str, Any]] = {}
        self.downloads: list[dict[str, str]] = []
        """The headers of each."""
        self.left = threading.Event()
        """Set when a client went away in the middle of an answer."""
        self.app = FastAPI()
        self.app.add_api_route("/api/v1/services/{service:path}", self.serve, methods=["POST"])
        self.app.add_api_route("/api/v1/tasks/{task_id}", self.task, methods=["GET"])
        self.app.add_api_route("/api/v1/tasks/{task_id}/cancel", self.cancel, methods=["POST"])
        self.app.add_api_route("/made/{name}", self.made, methods=["GET"])

    @property
    def body(self) -> dict[str, Any]:
        """Of the last request."""
        return self.requests[-1][1]

    async def serve(self, service: str, request: Request) -> Response:
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return _error(401, "InvalidApiKey", f"Invalid API-key provided: {request.headers.get('authorization')}")
        body = await request.json()
        self.requests.append((service, body, dict(request.headers)))
        if self.says.failure:
            return _error(*self.says.failure)
        model, input, parameters = body["model"], body["input"], body.get("parameters", {})
        if service in TASKS:
            if request.headers.get("x-dashscope-async") != "enable":
                return _error(403, "AccessDenied", "current user api does not support synchronous calls.")
            return self._submit(model)
        match service:
            case "aigc/multimodal-generation/generation" | "audio/tts/SpeechSynthesizer" if "voice" in input:
                audio = {"url": f"{request.base_url}made/speech.wav", "id": "audio_1", "expires_at": 1}
                usage = self.says.speech_usage or {"characters": len(input["text"])}
                if request.headers.get("x-dashscope-sse") == "enable":
                    events = self._speech("audio/tts" in service, audio, usage)
                    return StreamingResponse(events, media_type="text/event-stream;charset=UTF-8")
                return JSONResponse(_whole({"finish_reason": "stop", "audio": {"data": "", **audio}}, usage))
            case "aigc/text-generation/generation" | "aigc/multimodal-generation/generation":
                multimodal = "multimodal" in service
                if multimodal != (model in self.says.multimodal_only or "-vl" in model or "omni" in model):
                    return _error(400, "InvalidParameter", "url error, please check url！")
                if wrong := _wrong_messages(input, multimodal):
                    return _error(400, "InvalidParameter", wrong)
                return self._chat(parameters, multimodal, stream=request.headers.get("x-dashscope-sse") == "enable")
            case "embeddings/text-embedding/text-embedding":
                return _embed(input, parameters)
            case "rerank/text-rerank/text-rerank":
                return _rerank(input, parameters)
        return _error(400, "InvalidParameter", "url error, please check url！")

    # --- chat -----------------------------------------------------------------------------------------------------

    def _chat(self, parameters: dict[str, Any], multimodal: bool, *, stream: bool) -> Response:
        says = self.says
        if parameters.get("enable_thinking") and not stream:
            message = "parameter.enable_thinking must be set to false for non-streaming calls"
            return _error(400, "InvalidParameter", message)
        as_text = parameters.get("result_format", "text") == "text" and not multimodal
        if stream:
            events = self._events(parameters.get("incremental_output", False), multimodal, as_text)
            return StreamingResponse(events, media_type="text/event-stream;charset=UTF-8")
        message: dict[str, Any] = {"role": "assistant", "content": ""}
        for piece in says.pieces:
            _add(message, piece)
        return JSONResponse(
            _whole(_output([(0, message)], says.finish_reason, multimodal, as_text) | says.output, says.usage)
        )

    async def _events(self, incremental: bool, multimodal: bool, as_text: bool) -> AsyncGenerator[str, None]:
        says, number, finished = self.says, 0, False
        so_far: dict[int, dict[str, Any]] = {}
        try:
            for piece in [*says.pieces, {}]:
                if piece is ...:
                    await asyncio.Event().wait()
                if isinstance(piece, Exception):
                    raise piece
                number += 1
                index = piece.get("index", 0)
                message = so_far.setdefault(index, {"role": "assistant", "content": ""})
                _add(message, piece)
                shown = {"role": "assistant", "content": "", **piece} if incremental else message
                shown.pop("index", None)
                last = number > len(says.pieces)
                if last and says.late_failure:
                    code, text = says.late_failure
                    data = {"code": code, "message": text, "request_id": "r-1"}
                    yield f"id:{number}\nevent:error\n:HTTP_STATUS/400\ndata:{json.dumps(data)}\n\n"
                    return
                messages = (
                    [(each, {"role": "assistant", "content": ""}) for each in so_far]
                    if last and incremental
                    else [(index, shown)]
                )
                output = _output(messages, says.finish_reason if last else "null", multimodal, as_text) | says.output
                data = _whole(output, says.usage | {"output_tokens": says.usage["output_tokens"] if last else number})
                yield f"id:{number}\nevent:result\n:HTTP_STATUS/200\ndata:{json.dumps(data, ensure_ascii=False)}\n\n"
            finished = True
        finally:
            if not finished:
                self.left.set()

    # --- speech ---------------------------------------------------------------------------------------------------

    async def _speech(
        self, by_sentence: bool, whole: dict[str, Any], usage: dict[str, Any]
    ) -> AsyncGenerator[str, None]:
        """Qwen-TTS, or CosyVoice, which tells of its sentences."""
        number, finished = 0, False

        def event(output: dict[str, Any], **more: Any) -> str:
            nonlocal number
            number += 1
            data = json.dumps(_whole(output) | more)
            return f"id:{number}\nevent:result\n:HTTP_STATUS/200\ndata:{data}\n\n"

        try:
            if by_sentence:
                yield event({"type": "sentence-begin", "finish_reason": "null", "sentence": {"index": 0, "words": []}})
            for piece in self.says.sound:
                if piece is ...:
                    await asyncio.Event().wait()
                if isinstance(piece, Exception):
                    raise piece
                encoded = piece if isinstance(piece, str) else base64.b64encode(piece).decode()
                output = {"finish_reason": "null", "audio": {"data": encoded, "id": whole["id"], "expires_at": 1}}
                yield event(output | ({"type": "sentence-synthesis", "sentence": {"index": 0}} if by_sentence else {}))
            if self.says.late_failure:
                code, text = self.says.late_failure
                data = json.dumps({"code": code, "message": text, "request_id": "r-1"})
                yield f"id:{number + 1}\nevent:error\n:HTTP_STATUS/400\ndata:{data}\n\n"
            elif self.says.stops:
                yield event({"finish_reason": "stop", "audio": {"data": "", **whole}}, usage=usage)
            finished = True
        finally:
            if not finished:
                self.left.set()

    # --- tasks ----------------------------------------------------------------------------------------------------

    def _submit(self, model: str) -> Response:
        task_id = f"task-{len(self.tasks)}"
        self.tasks[task_id] = {"states": [*self.says.task_states], "polls": 0, "model": model}
        return JSONResponse(_whole({"task_status": "PENDING", "task_id": task_id}))

    async def task(self, task_id: str, request: Request) -> Response:
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return _error(401, "InvalidApiKey", "Invalid API-key provided.")
        if self.says.poll_failure:
            return _error(*self.says.poll_failure)
        task = self.tasks.get(task_id)
        if task is None:
            return JSONResponse(_whole({"task_id": task_id, "task_status": "UNKNOWN"}))
        task["polls"] += 1
        state = task["states"].pop(0) if len(task["states"]) > 1 else task["states"][0]
        usage = state.get("usage")
        output = {"task_id": task_id} | {key: value for key, value in state.items() if key != "usage"}
        return JSONResponse(_whole(output, usage))

    async def made(self, name: str, request: Request) -> Response:
        self.downloads.append(dict(request.headers))
        return Response(f"bytes of {name}")

    async def cancel(self, task_id: str) -> Response:
        task = self.tasks[task_id]
        if task["states"][0]["task_status"] != "PENDING":
            message = "Failed to cancel the task, please confirm if the task is in PENDING status."
            return _error(400, "UnsupportedOperation", message)
        task["states"] = [{"task_status": "CANCELED"}]
        return JSONResponse({"request_id": "r-1"})


def _wrong_messages(input: dict[str, Any], multimodal: bool) -> str | None:
    """Text models take strings (or parts that mark a cache), multimodal ones lists of parts."""
    for message in input.get("messages", [{"role": "user", "content": input.get("prompt")}]):
        content = message.get("content")
        if multimodal and not isinstance(content, list):
            return f"content must be a list: {content!r}"
        if isinstance(content, list):
            for part in content:
                kinds = {"text", "image", "video", "audio"} & set(part)
                if "type" in part or len(kinds) != 1 or (not multimodal and kinds != {"text"}):
                    return f"not a part: {part!r}"
        elif content is None:
            return "content is missing"
    return None


def _add(message: dict[str, Any], piece: dict[str, Any]) -> None:
    for name in ("content", "reasoning_content"):
        if name in piece:
            message[name] = message.get(name, "") + piece[name]
    for call in piece.get("tool_calls", []):
        calls = message.setdefault("tool_calls", [])
        known = next((one for one in calls if one["index"] == call["index"]), None)
        if known is None:
            calls.append(json.loads(json.dumps(call)))
        else:
            known["function"]["arguments"] += call["function"].get("arguments", "")


def _output(messages: list[tuple[int, dict[str, Any]]], reason: str, multimodal: bool, as_text: bool) -> dict[str, Any]:
    if as_text:
        return {"text": messages[0][1].get("content", ""), "finish_reason": reason}
    choices = []
    for index, message in messages:
        if multimodal:
            content = message.get("content")
            message = message | {"content": [{"text": content}] if content else []}
        choices.append(
            {"finish_reason": reason, "message": message} | ({"index": index} if len(messages) > 1 or index else {})
        )
    return {"choices": choices}


def _embed(input: dict[str, Any], parameters: dict[str, Any]) -> Response:
    texts = input["texts"]
    if len(texts) > 10:
        return _error(400, "InvalidParameter", "batch size is invalid, it should not be larger than 10.")
    size = parameters.get("dimension", 4)
    vectors = [
        {"text_index": index, "embedding": [float(len(text))] + [0.5] * (size - 1)} for index, text in enumerate(texts)
    ]
    return JSONResponse(_whole({"embeddings": vectors[::-1]}, {"total_tokens": 2 * len(texts)}))


def _rerank(input: dict[str, Any], parameters: dict[str, Any]) -> Response:
    """The longer a document, the more relevant."""
    documents = input["documents"]
    order = sorted(range(len(documents)), key=lambda index: -len(documents[index]))[: parameters.get("top_n")]
    results = [{"index": index, "relevance_score": len(documents[index]) / 100} for index in order]
    if parameters.get("return_documents"):
        results = [one | {"document": {"text": documents[one["index"]]}} for one in results]
    return JSONResponse(_whole({"results": results}, {"total_tokens": 9}))


def _whole(output: dict[str, Any], usage: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"output": output} | ({"usage": usage} if usage is not None else {}) | {"request_id": "r-1"}


def _error(status: int, code: str, message: str) -> Response:
    return JSONResponse({"code": code, "message": message, "request_id": "r-1"}, status)
