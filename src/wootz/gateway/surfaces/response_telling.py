"""An answer as the Responses API tells it: a list of items, each opened, told piece by piece, and closed.

An answer's text is a message item, thoughts are a reasoning item, each tool call is a function_call item. Where the
request asked for a summary of the thoughts they are told as one (nothing shortens them); else as ``reasoning_text``.

Source: https://platform.openai.com/docs/api-reference/responses-streaming, and the event types of the ``openai`` SDK.
"""

from __future__ import annotations

import uuid
from typing import Any

from wootz.core import WootzError
from wootz.core.wire import ChatChunk, TokenLogprob, Usage, now
from wootz.gateway.surfaces.surface import Event, Telling

INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


class ResponseTelling(Telling):
    """``echo`` are the fields of the response that repeat the request's."""

    def __init__(self, echo: dict[str, Any], *, summarize: bool = False) -> None:
        self.id = _id("resp")
        self.created_at = now()
        self.echo = echo
        self.summarize = summarize
        self.output: list[dict[str, Any]] = []
        self._usage: Usage | None = None
        self._finish_reason: str | None = None
        self._number = 0
        self._item: _Item | None = None
        self._call: int | None = None
        self._last: list[Event] | None = None

    # --- the telling ----------------------------------------------------------------------------------------------

    def chunk(self, chunk: ChatChunk) -> list[Event]:
        events: list[Event] = []
        if not self._number:
            events += [self._event("response.created", response=self._response("in_progress"))]
            events += [self._event("response.in_progress", response=self._response("in_progress"))]
        self._usage = chunk.usage or self._usage
        for choice in chunk.choices:
            delta = choice.delta
            if delta.reasoning_content:
                events += self._enter(_Thoughts if not self.summarize else _Summary)
                events += self._told(delta.reasoning_content)
            if delta.content:
                events += self._enter(_Message)
                tokens = choice.logprobs.content if choice.logprobs else None
                events += self._told(delta.content, [_logprob(token) for token in tokens or ()])
            for fragment in delta.tool_calls or ():
                events += self._tool_call(fragment)
            self._finish_reason = choice.finish_reason or self._finish_reason
        return events

    def end(self) -> list[Event]:
        """The same events however often it is asked: who keeps the response asks before the client is told."""
        if self._last is None:
            nothing = not self.output and self._item is None
            events = [*(self._enter(_Message) if nothing else ()), *self._leave()]
            status = "incomplete" if self._finish_reason in INCOMPLETE else "completed"
            self._last = [*events, self._event(f"response.{status}", response=self._response(status))]
        return self._last

    def failed(self, error: WootzError) -> list[Event]:
        response = self._response("failed")
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        response["error"] = {"code": code, "message": str(error)}
        return [self._event("response.failed", response=response)]

    def whole(self) -> dict[str, Any]:
        assert self._last is not None
        return self._last[-1]["response"]

    # --- items ----------------------------------------------------------------------------------------------------

    def _enter(self, kind: type[_Item]) -> list[Event]:
        """Be in an item of this kind; the one before it is closed."""
        if type(self._item) is kind:
            return []
        events = self._leave()
        self._item = kind(len(self.output))
        return [*events, *self._numbered(self._item.opened())]

    def _leave(self) -> list[Event]:
        if self._item is None:
            return []
        item, self._item = self._item, None
        cut = self._finish_reason in INCOMPLETE or item.cut
        events = item.closed("incomplete" if cut else "completed")
        self.output.append(events[-1]["item"])
        return self._numbered(events)

    def _told(self, text: str, logprobs: list[dict[str, Any]] | None = None) -> list[Event]:
        assert self._item is not None
        return self._numbered([self._item.told(text, logprobs or [])])

    def _tool_call(self, fragment: dict[str, Any]) -> list[Event]:
        function, index = fragment.get("function") or {}, fragment.get("index", 0)
        events: list[Event] = []
        if type(self._item) is not _Call or self._call != index:
            events += self._leave()
            self._item, self._call = _Call(len(self.output)), index
            self._item.name(fragment.get("id") or "", function.get("name") or "")
            events += self._numbered(self._item.opened())
        self._item.cut = self._item.cut or bool(fragment.get("incomplete"))
        if arguments := function.get("arguments"):
            events += self._told(arguments)
        return events

    # --- events ---------------------------------------------------------------------------------------------------

    def _event(self, type: str, **fields: Any) -> Event:
        event = {"type": type, "sequence_number": self._number, **fields}
        self._number += 1
        return event

    def _numbered(self, events: list[Event]) -> list[Event]:
        for event in events:
            event["sequence_number"] = self._number
            self._number += 1
        return events

    def _response(self, status: str) -> dict[str, Any]:
        reason = INCOMPLETE.get(self._finish_reason or "") if status == "incomplete" else None
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "completed_at": now() if status == "completed" else None,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": reason} if reason else None,
            "output": list(self.output),
            "usage": None if self._usage is None else usage(self._usage),
            **self.echo,
        }


def usage(counted: Usage) -> dict[str, Any]:
    """As the Responses API has it."""
    return {
        "input_tokens": counted.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": counted.cached_tokens,
            "cache_write_tokens": counted.cache_write_tokens,
        },
        "output_tokens": counted.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": counted.reasoning_tokens},
        "total_tokens": counted.total_tokens,
    }


class _Item:
    """One item while it is told. Events get their numbers later."""

    prefix: str
    kind: str

    def __init__(self, index: int) -> None:
        self.id = _id(self.prefix)
        self.index = index
        self.cut = False
        self.parts: list[str] = []
        self.logprobs: list[dict[str, Any]] = []

    @property
    def text(self) -> str:
        return "".join(self.parts)

    def body(self, status: str, text: str | None) -> dict[str, Any]:
        """The item; with no content yet where ``text`` is None."""
        raise NotImplementedError

    def part(self, text: str) -> dict[str, Any] | None:
        """The item's one part; None where it has none (a call)."""
        return None

    part_event = "content_part"
    text_event = ""
    index_name = "content_index"

    def opened(self) -> list[Event]:
        added = self._event("response.output_item.added", item=self.body("in_progress", None))
        del added["item_id"]
        part = self.part("")
        return [added] if part is None else [added, self._event(f"response.{self.part_event}.added", part=part)]

    def told(self, text: str, logprobs: list[dict[str, Any]]) -> Event:
        self.parts.append(text)
        self.logprobs += logprobs
        return self._event(f"response.{self.text_event}.delta", delta=text)

    def closed(self, status: str) -> list[Event]:
        text = self.text
        events = [self._event(f"response.{self.text_event}.done", **self.outcome(text))]
        if (part := self.part(text)) is not None:
            events.append(self._event(f"response.{self.part_event}.done", part=part))
        done = self._event("response.output_item.done", item=self.body(status, text))
        del done["item_id"]
        return [*events, done]

    def outcome(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _event(self, type: str, **fields: Any) -> Event:
        event = {"type": type, "sequence_number": 0, "item_id": self.id, "output_index": self.index, **fields}
        if self.index_name and "item" not in fields:
            event[self.index_name] = 0
        return event


class _Message(_Item):
    prefix, kind, text_event = "msg", "message", "output_text"

    def body(self, status: str, text: str | None) -> dict[str, Any]:
        content = [] if text is None else [self.part(text)]
        return {"id": self.id, "type": "message", "status": status, "role": "assistant", "content": content}

    def part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(self.logprobs)}

    def told(self, text: str, logprobs: list[dict[str, Any]]) -> Event:
        return super().told(text, logprobs) | {"logprobs": logprobs}

    def outcome(self, text: str) -> dict[str, Any]:
        return {"text": text, "logprobs": list(self.logprobs)}


class _Thoughts(_Item):
    prefix, kind, text_event = "rs", "reasoning", "reasoning_text"

    def body(self, status: str, text: str | None) -> dict[str, Any]:
        content = [] if text is None else [self.part(text)]
        return {"id": self.id, "type": "reasoning", "status": status, "summary": [], "content": content}

    def part(self, text: str) -> dict[str, Any]:
        return {"type": "reasoning_text", "text": text}


class _Summary(_Item):
    prefix, kind, text_event = "rs", "reasoning", "reasoning_summary_text"
    part_event, index_name = "reasoning_summary_part", "summary_index"

    def body(self, status: str, text: str | None) -> dict[str, Any]:
        summary = [] if text is None else [self.part(text)]
        return {"id": self.id, "type": "reasoning", "status": status, "summary": summary}

    def part(self, text: str) -> dict[str, Any]:
        return {"type": "summary_text", "text": text}


class _Call(_Item):
    prefix, kind, text_event, index_name = "fc", "function_call", "function_call_arguments", ""

    def name(self, call_id: str, function: str) -> None:
        self.call_id, self.function = call_id, function

    def body(self, status: str, text: str | None) -> dict[str, Any]:
        call = {"call_id": self.call_id, "name": self.function, "arguments": text or ""}
        return {"id": self.id, "type": "function_call", "status": status, **call}

    def outcome(self, text: str) -> dict[str, Any]:
        return {"name": self.function, "arguments": text}


def _logprob(token: TokenLogprob) -> dict[str, Any]:
    return {
        "token": token.token,
        "logprob": token.logprob,
        "bytes": token.bytes or [],
        "top_logprobs": [
            {"token": one.token, "logprob": one.logprob, "bytes": one.bytes or []} for one in token.top_logprobs
        ],
    }


def _id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"
