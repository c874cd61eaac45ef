"""An answer in DashScope's words: ``{"output", "usage", "request_id"}``, whole or as events.

- *incremental* or not: an event holds what is new, or everything so far (the default there)
- ``result_format`` "message" has choices, "text" one text; multimodal content is a list of parts
- a ``finish_reason`` is the text "null" until the last event, which alone tells the usage (theirs tell it so far; what
  a model has used is known here when it is done)
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from wootz.core import RateLimitError, WootzError
from wootz.core.wire import ChatChunk, ChunkChoice, Usage
from wootz.gateway.surfaces.surface import Event, Telling, encode

ERROR_CODES = {
    400: "InvalidParameter",
    401: "InvalidApiKey",
    402: "Arrearage",
    403: "AccessDenied",
    404: "ModelNotFound",
    408: "RequestTimeOut",
    413: "BadRequest.TooLarge",
    429: "Throttling.RateQuota",
    503: "ServiceUnavailable",
    504: "RequestTimeOut",
}


class DashScopeError(BaseModel):
    code: str
    message: str
    request_id: str


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": DashScopeError, "description": description}
    for status, description in {
        400: "The request can never succeed as it is written.",
        401: "No key, or an unknown, revoked or expired one.",
        403: "The key lacks the scope.",
        404: "It does not exist, or this key may not see it.",
        413: "The body is larger than server.max_body_bytes.",
        429: "A rate limit is used up; the header retry-after says for how long.",
        502: "A remote endpoint failed.",
        503: "The model is loading or restarting; the same request may succeed later.",
        "default": "Any other failure.",
    }.items()
}


def error_body(error: WootzError, request_id: str) -> dict[str, Any]:
    code = ERROR_CODES.get(error.status, "InternalError")
    if error.code == "content_filter":
        code = "DataInspectionFailed"
    elif error.code == "unknown_url":
        code = "InvalidURL"
    elif error.code == "task_not_pending":
        code = "UnsupportedOperation"
    elif error.code == "task_not_found":
        code = "TaskNotFound"
    elif isinstance(error, RateLimitError) and any(word in (error.code or "") for word in ("budget", "quota")):
        code = "Throttling.AllocationQuota"
    return {"code": code, "message": str(error), "request_id": request_id}


def frame(number: int, event: Event) -> bytes:
    """One event over the wire, an error if it has a ``status``; that is also the line which the SDK reads.
    ``:HTTP_STATUS/…``, to others a comment, is what DashScope writes."""
    if "status" in event:
        status = event.pop("status")
        return b"id:%d\nevent:error\n:HTTP_STATUS/%d\nstatus:%d\ndata:%s\n\n" % (number, status, status, encode(event))
    return b"id:%d\nevent:result\n:HTTP_STATUS/200\ndata:%s\n\n" % (number, encode(event))


class GenerationTelling(Telling):
    def __init__(self, request_id: str, *, incremental: bool, as_text: bool, multimodal: bool) -> None:
        self.request_id = request_id
        self.incremental = incremental
        self.as_text = as_text
        self.multimodal = multimodal
        self._number = 0
        self._messages: dict[int, dict[str, Any]] = {}
        """What each choice said so far."""
        self._reasons: dict[int, str] = {}
        self._logprobs: dict[int, list[Any]] = {}
        self._sources: Any = None
        self._usage = Usage()

    def chunk(self, chunk: ChatChunk) -> list[Event]:
        self._usage = chunk.usage or self._usage
        self._sources = (chunk.model_extra or {}).get("search_info") or self._sources
        told = [self._choice(choice) for choice in chunk.choices]
        told = [choice for choice in told if choice is not None]
        if not told:
            return []
        if not self.incremental:
            told = [self._so_far(choice["index"], "null") for choice in told]
        return [self._event(told)]

    def end(self) -> list[Event]:
        """The last event closes every choice and tells the usage."""
        if self.incremental:
            told = [
                _choice_of(index, {"role": "assistant", "content": ""}, self._reason(index)) for index in self._indices
            ]
        else:
            told = [self._so_far(index, self._reason(index)) for index in self._indices]
        return [self._event(told) | {"usage": dashscope_usage(self._usage)}]

    def failed(self, error: WootzError) -> list[Event]:
        return [error_body(error, self.request_id) | {"status": error.status}]

    def whole(self) -> dict[str, Any]:
        told = [self._so_far(index, self._reason(index)) for index in self._indices]
        return self._event(told) | {"usage": dashscope_usage(self._usage)}

    def frame(self, event: Event) -> bytes:
        self._number += 1
        return frame(self._number, event)

    # --- one choice -----------------------------------------------------------------------------------------------

    @property
    def _indices(self) -> list[int]:
        return sorted(self._messages) or [0]

    def _reason(self, index: int) -> str:
        return self._reasons.get(index, "stop")

    def _choice(self, choice: ChunkChoice) -> dict[str, Any] | None:
        """What this chunk adds to a choice; None for nothing."""
        index, delta = choice.index, choice.delta
        message = self._messages.setdefault(index, {"role": "assistant", "content": ""})
        if choice.finish_reason:
            self._reasons[index] = choice.finish_reason
        added: dict[str, Any] = {"role": "assistant", "content": delta.content or ""}
        message["content"] += added["content"]
        if delta.reasoning_content:
            added["reasoning_content"] = delta.reasoning_content
            message["reasoning_content"] = message.get("reasoning_content", "") + delta.reasoning_content
        if calls := [call for call in delta.tool_calls or [] if not call.get("incomplete")]:
            added["tool_calls"] = [{"id": "", "type": "function", **call} for call in calls]
            for call in calls:
                _extend(message.setdefault("tool_calls", []), call)
        told = _choice_of(index, added, "null")
        if choice.logprobs is not None and choice.logprobs.content:
            content = [token.model_dump() for token in choice.logprobs.content]
            self._logprobs.setdefault(index, []).extend(content)
            told["logprobs"] = {"content": content}
        return told if added["content"] or len(added) > 2 else None

    def _so_far(self, index: int, reason: str) -> dict[str, Any]:
        message = self._messages.get(index, {"role": "assistant", "content": ""})
        told = _choice_of(index, {**message}, reason)
        if index in self._logprobs:
            told["logprobs"] = {"content": self._logprobs[index]}
        return told

    def _event(self, choices: list[dict[str, Any]]) -> Event:
        output: dict[str, Any] = {"choices": choices}
        if self.as_text:
            output = {"text": choices[0]["message"]["content"], "finish_reason": choices[0]["finish_reason"]}
        elif self.multimodal:
            for choice in choices:
                text = choice["message"]["content"]
                choice["message"]["content"] = [{"text": text}] if text else []
        if self._sources:
            output["search_info"] = self._sources
        return {"output": output, "request_id": self.request_id}


def _choice_of(index: int, message: dict[str, Any], reason: str) -> dict[str, Any]:
    return {"index": index, "finish_reason": reason, "message": message}


def _extend(calls: list[dict[str, Any]], fragment: dict[str, Any]) -> None:
    index, function = fragment.get("index", 0), fragment.get("function") or {}
    call = next((one for one in calls if one["index"] == index), None)
    if call is None:
        call = {"index": index, "id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        calls.append(call)
    call["id"] = fragment.get("id") or call["id"]
    call["function"] = {
        "name": call["function"]["name"] + (function.get("name") or ""),
        "arguments": call["function"]["arguments"] + (function.get("arguments") or ""),
    }


def dashscope_usage(usage: Usage) -> dict[str, Any]:
    told: dict[str, Any] = {
        "input_tokens": usage.prompt_tokens,
        "output_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
    details = usage.model_dump(include={"prompt_tokens_details", "completion_tokens_details"}, exclude_none=True)
    if prompt := details.get("prompt_tokens_details"):
        if written := usage.cache_write_tokens:
            prompt["cache_creation_input_tokens"] = written
        told["prompt_tokens_details"] = prompt
    if completion := details.get("completion_tokens_details"):
        told["output_tokens_details"] = completion
    return told
