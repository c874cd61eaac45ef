"""Streams: what is on the wire, what happens in the middle, and who notices when a client leaves."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest
from serving import ASK, CHAT, HANG, GatewayServer, ScriptedModel
from starlette.types import Message

from wootz.core import BadRequestError, UpstreamError, fold_chat
from wootz.core.wire import ChatChunk, ChatRequest, ChunkChoice, Delta, Usage
from wootz.gateway import answers


def data_of(response: httpx.Response) -> list[str]:
    assert re.fullmatch(r"(data: [^\n]+\n\n)+", response.text)
    return re.findall(r"data: (.+)\n\n", response.text)


def test_events_are_as_openai_sends_them(http: httpx.Client) -> None:
    response = http.post(CHAT, json=ASK | {"stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, done = data_of(response)
    assert done == "[DONE]"
    chunk = json.loads(events[1])
    assert chunk["object"] == "chat.completion.chunk"
    assert chunk["choices"] == [{"index": 0, "delta": {"content": "lo, "}, "logprobs": None, "finish_reason": None}]
    assert "usage" not in chunk


def test_text_arrives_while_the_model_still_works(http: httpx.Client, model: ScriptedModel) -> None:
    model.script = ["first", HANG]
    with http.stream("POST", CHAT, json=ASK | {"stream": True}) as response:
        assert "first" in next(response.iter_text())


def test_an_error_in_the_middle_is_an_event_and_the_end(
    http: httpx.Client, server: GatewayServer, model: ScriptedModel
) -> None:
    for failure, status in ((UpstreamError("it broke"), 502), (ValueError("bug"), 500)):
        model.script = ["one", failure]
        response = http.post(CHAT, json=ASK | {"stream": True})
        *_, chunk, error = data_of(response)
        assert response.status_code == 200
        assert "one" in chunk
        assert set(json.loads(error)["error"]) == {"message", "type", "param", "code"}
        assert "bug" not in error
        record = server.call(server.ledger.get(response.headers["x-request-id"]))
        assert (record.status, record.completion_tokens) == (status, 1)


def test_an_answer_that_breaks_off_is_an_error(
    http: httpx.Client, model: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "usage", None)
    response = http.post(CHAT, json=ASK)
    assert (response.status_code, response.json()["error"]["code"]) == (502, "incomplete_answer")


def test_the_record_is_there_before_the_answer_ends(http: httpx.Client, server: GatewayServer) -> None:
    """At the moment the last event arrives, the row can be read."""
    body = ASK | {"stream": True, "user": "ada"}
    with http.stream("POST", CHAT, json=body) as response:
        for text in response.iter_text():
            if "[DONE]" in text:
                record = server.call(server.ledger.get(response.headers["x-request-id"]))
                break
    assert (record.status, record.finish_reason, record.stream, record.user) == (200, "stop", True, "ada")
    assert (record.prompt_tokens, record.cached_tokens, record.completion_tokens) == (7, 2, 3)
    assert record.time_to_first_token is not None
    assert record.client_disconnected is False


def test_usage_is_not_sent_before_the_record_is_written(
    http: httpx.Client, server: GatewayServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the ledger's disk gone slow, the terminal chunk waits for it."""
    events: list[str] = []
    write = server.ledger.write

    async def slow_write(*record: Any) -> None:
        await write(*record)
        events.append("written")

    monkeypatch.setattr(server.ledger, "write", slow_write)
    with http.stream("POST", CHAT, json=ASK | {"stream": True, "stream_options": {"include_usage": True}}) as response:
        for line in response.iter_lines():
            if '"usage"' in line:
                assert events == ["written"]
                break
        else:
            pytest.fail("no usage came")


def test_a_whole_answer_is_recorded_too(http: httpx.Client, server: GatewayServer) -> None:
    response = http.post("/v1/completions", json={"model": "scripted", "prompt": "Say"})
    record = server.call(server.ledger.get(response.headers["x-request-id"]))
    assert (record.route, record.status, record.stream, record.completion_tokens) == ("/v1/completions", 200, False, 3)
    key = server.call(server.keys.authenticate(server.key))
    assert record.key_id == key.id


def test_what_is_refused_is_recorded(http: httpx.Client, server: GatewayServer) -> None:
    response = http.post(CHAT, json=ASK | {"model": "gone"})
    record = server.call(server.ledger.get(response.headers["x-request-id"]))
    assert (record.status, record.error_code, record.model, record.provider) == (404, "model_not_found", "gone", None)


@pytest.mark.parametrize("script", [[HANG], ["one", HANG]], ids=["before the first chunk", "in the middle"])
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_client_that_leaves_cancels_the_work(
    server: GatewayServer, model: ScriptedModel, script: list, stream: bool
) -> None:
    model.script = script
    mine = f"leaver{uuid.uuid4().hex}"
    long = {"messages": [{"role": "user", "content": "word" * 100}]}
    body = json.dumps(ASK | long | {"stream": stream}).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {server.key}\r\ncontent-type: application/json\r\n"
        f"x-request-id: {mine}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + body)
        assert model.hanging.wait(20)
    assert model.cancelled.wait(20)
    record = server.wait_for_record(mine)
    assert (record.status, record.client_disconnected, record.completion_tokens) == (499, True, len(script) - 1)
    assert record.prompt_tokens == 100, "the model has read it, and who leaves early would not pay"


def test_two_requests_with_one_client_id_are_two_records(http: httpx.Client, server: GatewayServer) -> None:
    ids = [http.post(CHAT, json=ASK, headers={"x-request-id": "mine.1"}).headers["x-request-id"] for _ in range(2)]
    assert ids[0] != ids[1]
    for request_id in ids:
        assert request_id.startswith("mine.1-")
        assert server.call(server.ledger.get(request_id)).status == 200


@pytest.mark.parametrize("given", ["a b", "x" * 500, 'a"b', "ä".encode()])
def test_an_odd_client_id_is_replaced(http: httpx.Client, given: str | bytes) -> None:
    response = http.get("/v1/models", headers={"x-request-id": given})
    assert re.fullmatch(r"req-[0-9a-f]{32}", response.headers["x-request-id"])


def test_a_refusal_before_the_stream_has_its_own_status(http: httpx.Client, model: ScriptedModel) -> None:
    model.script = [BadRequestError("too long", code="context_length_exceeded", param="messages")]
    response = http.post(CHAT, json=ASK | {"stream": True})
    assert (response.status_code, response.headers["content-type"]) == (400, "application/json")


async def test_an_answer_that_is_all_there_leaves_others_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    now, turns, sent_in = 100.0, 0, list[int]()

    def perf_counter() -> float:
        nonlocal now
        now += answers.TURN_SECONDS / 10
        return now

    async def chunks() -> AsyncGenerator[ChatChunk, None]:
        for number in range(60):
            delta = Delta(content=str(number))
            yield ChatChunk(id="1", model="m", choices=[ChunkChoice(delta=delta)])

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body" and message["body"] != b"data: [DONE]\n\n":
            sent_in.append(turns)

    monkeypatch.setattr(answers.time, "perf_counter", perf_counter)
    counting = asyncio.create_task(count_turns())
    await answers.StreamedAnswer(chunks(), include_usage=False)._stream(send)
    counting.cancel()
    assert len(sent_in) == 60
    assert max(Counter(sent_in).values()) <= 11


def test_a_chunk_leaves_before_the_next_is_made(
    http: httpx.Client, model: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing lets the loop have a turn in between."""
    read, was_read = threading.Event(), list[bool]()

    async def chat(request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        yield ChatChunk(id="1", model=request.model, choices=[ChunkChoice(delta=Delta(content="first"))])
        was_read.append(read.wait(20))
        yield ChatChunk(id="1", model=request.model, choices=[ChunkChoice(delta=Delta(), finish_reason="stop")])
        yield ChatChunk(id="1", model=request.model, choices=[], usage=Usage())

    monkeypatch.setattr(model, "chat", chat)
    with http.stream("POST", CHAT, json=ASK | {"stream": True}) as response:
        for line in response.iter_lines():
            if "first" in line:
                read.set()
    assert was_read == [True]


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_what_a_model_does_after_its_last_chunk_is_not_waited_for(
    http: httpx.Client, server: GatewayServer, model: ScriptedModel, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """And should it fail at it, the answer was given all the same."""
    is_read, waited = threading.Event(), list[bool]()

    async def chat(request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        yield ChatChunk(id="1", model=request.model, choices=[ChunkChoice(delta=Delta(content="all"))])
        yield ChatChunk(id="1", model=request.model, choices=[ChunkChoice(delta=Delta(), finish_reason="stop")])
        yield ChatChunk(id="1", model=request.model, choices=[], usage=Usage())
        waited.append(await asyncio.to_thread(is_read.wait, 20))
        raise UpstreamError("it could not hang up")

    monkeypatch.setattr(model, "chat", chat)
    response = http.post(CHAT, json=ASK | {"stream": stream})
    assert "all" in response.text
    assert "error" not in response.text
    time.sleep(2 * answers.WATCH_AFTER_SECONDS)
    is_read.set()
    assert http.get("/v1/models").status_code == 200  # On the same connection.
    assert waited == [True]
    assert server.call(server.ledger.get(response.headers["x-request-id"])).status == 200


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_nothing_of_a_model_is_left_open_where_its_answer_cannot_be_sent(stream: bool) -> None:
    closed = list[bool]()

    async def chunks() -> AsyncGenerator[ChatChunk, None]:
        try:
            yield ChatChunk(id="1", model="m", choices=[ChunkChoice(delta=Delta(content="a"), finish_reason="stop")])
            yield ChatChunk(id="1", model="m", choices=[], usage=Usage())
        finally:
            closed.append(True)

    async def never() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        raise OSError("it went away")

    answer = answers.answer_with(chunks(), fold_chat, stream=stream, include_usage=True)
    with pytest.raises(OSError, match="it went away"):
        await answer({"type": "http"}, never, send)
    assert closed == [True]
