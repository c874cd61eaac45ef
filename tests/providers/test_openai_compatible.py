"""A remote endpoint in its good and its bad hours, on a real socket. Its key stays between us and it."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from serving import HANG, GatewayServer, ScriptedModel, Server

from wootz.core import (
    BadRequestError,
    Config,
    ConfigError,
    LanguageModel,
    ModelConfig,
    PayloadTooLargeError,
    RateLimitError,
    UpstreamError,
    collect_chat,
    collect_completion,
)
from wootz.core.wire import ChatChunk, ChatRequest, CompletionRequest, EmbeddingRequest
from wootz.providers import Endpoint, OpenAICompatibleModel, Timeouts, open_models

SECRET = "sk-upstream-secret-0123456789"
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def ask(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "ours", "messages": [{"role": "user", "content": "hi"}], **fields})


class FarEnd:
    """What the endpoint answers next, and what it was sent."""

    def __init__(self) -> None:
        self.answer: Response | list[Any] = []
        self.body: dict[str, Any] = {}
        self.headers: dict[str, str] = {}
        self.left = threading.Event()

    async def respond(self, request: Request) -> Response:
        self.body, self.headers = await request.json(), dict(request.headers)
        if isinstance(self.answer, Response):
            return self.answer
        return StreamingResponse(self._events(self.answer), media_type="text/event-stream")

    async def _events(self, events: list[Any]) -> AsyncGenerator[str, None]:
        try:
            for event in events:
                if event is HANG:
                    await asyncio.Event().wait()
                if isinstance(event, Exception):
                    raise event
                yield f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n"
        finally:
            self.left.set()


@pytest.fixture(scope="module")
def far_end_server() -> Iterator[Server]:
    app = FastAPI()

    @app.post("/v1/{path:path}")
    async def respond(request: Request) -> Response:
        return await app.state.far_end.respond(request)

    with Server(app) as server:
        yield server


@pytest.fixture
def far_end(far_end_server: Server) -> FarEnd:
    far_end = far_end_server.app.state.far_end = FarEnd()
    return far_end


@pytest.fixture
async def model(far_end_server: Server, far_end: FarEnd) -> AsyncGenerator[OpenAICompatibleModel, None]:
    timeouts = Timeouts(silence=20)
    endpoint = Endpoint("ours", f"{far_end_server.url}/v1", SECRET, upstream_model="theirs", timeouts=timeouts)
    model = OpenAICompatibleModel(endpoint)
    yield model
    await model.close()


def event(text: str | None = None, **fields: Any) -> dict[str, Any]:
    """A chunk with some text, or with ``finish_reason``."""
    choice = {"index": 0, "delta": {"content": text} if text is not None else {}}
    choice |= {name: fields.pop(name) for name in ("finish_reason", "logprobs") if name in fields}
    return {
        "id": "x",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "theirs",
        "choices": [choice],
        **fields,
    }


USAGE_EVENT = {"id": "x", "created": 1, "model": "theirs", "choices": [], "usage": USAGE}
HAPPY = [event("Hel"), event("lo"), event(finish_reason="stop"), USAGE_EVENT, "[DONE]"]


async def chunks_of(model: LanguageModel, **fields: Any) -> list[ChatChunk]:
    return [chunk async for chunk in model.chat(ask(**fields))]


# --- good hours ------------------------------------------------------------------------------------------------


async def test_a_stream_comes_through_under_our_name(model: OpenAICompatibleModel, far_end: FarEnd) -> None:
    far_end.answer = HAPPY
    chunks = await chunks_of(model, stream=True)
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
    assert "".join(texts) == "Hello"
    assert sum(chunk.num_parts for chunk in chunks[:-1]) == 3, "whatever came together is one chunk"
    assert {chunk.model for chunk in chunks} == {"ours"}
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 5


async def test_only_what_the_user_wrote_goes_on(model: OpenAICompatibleModel, far_end: FarEnd) -> None:
    far_end.answer = HAPPY
    await chunks_of(model, temperature=0.5, enable_search=True, metadata={"a": [1]})
    assert far_end.body == {
        "model": "theirs",
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0.5,
        "enable_search": True,
        "metadata": {"a": [1]},
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert far_end.headers["authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize(
    "events",
    [
        [event("Hel", usage=USAGE), event("lo", finish_reason="stop", usage=USAGE), "[DONE]"],
        [event("Hel", finish_reason=""), event("lo", usage=None), event(finish_reason=["eos"]), USAGE_EVENT, "[DONE]"],
        [event("Hel"), event("lo", finish_reason="stop"), {**USAGE_EVENT, "choices": None}],
    ],
    ids=["usage with content", "odd finish reasons", "no done"],
)
async def test_dialects_become_one(model: OpenAICompatibleModel, far_end: FarEnd, events: list) -> None:
    far_end.answer = events
    chunks = await chunks_of(model)
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    answer = await collect_chat(_replay(chunks))
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Hello", "stop")
    assert answer.usage is not None
    assert answer.usage.total_tokens == 5


async def _replay(chunks: list[ChatChunk]) -> AsyncGenerator[ChatChunk, None]:
    for chunk in chunks:
        yield chunk


async def test_an_endpoint_that_tells_no_usage_counts_as_zero(model: OpenAICompatibleModel, far_end: FarEnd) -> None:
    far_end.answer = [event("hi", finish_reason="stop"), "[DONE]"]
    last = (await chunks_of(model))[-1]
    assert last.usage is not None
    assert last.usage.total_tokens == 0


async def test_completions_and_embeddings(model: OpenAICompatibleModel, far_end: FarEnd) -> None:
    text = {
        "id": "c",
        "created": 1,
        "model": "theirs",
        "choices": [{"index": 0, "text": "yes", "finish_reason": "stop"}],
    }
    far_end.answer = [text, USAGE_EVENT, "[DONE]"]
    answer = await collect_completion(model.complete(CompletionRequest(model="ours", prompt="Say")))
    assert (answer.choices[0].text, answer.model) == ("yes", "ours")

    vector = {"object": "embedding", "index": 0, "embedding": [0.5, -1.0]}
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    far_end.answer = JSONResponse({"object": "list", "data": [vector], "model": "theirs", "usage": usage})
    embedded = await model.embed(EmbeddingRequest(model="ours", input="hi"))
    assert (embedded.data[0].embedding, embedded.model) == ([0.5, -1.0], "ours")
    assert far_end.body == {"model": "theirs", "input": "hi"}


async def test_closing_the_answer_stops_the_far_end(model: OpenAICompatibleModel, far_end: FarEnd) -> None:
    far_end.answer = [event("one"), HANG]
    chunks = model.chat(ask())
    await anext(chunks)
    await chunks.aclose()
    assert await asyncio.to_thread(far_end.left.wait, 20)


# --- bad hours -------------------------------------------------------------------------------------------------


def refusal(status: int, message: str = "", headers: dict[str, str] | None = None, **error: Any) -> Response:
    return JSONResponse({"error": {"message": message, **error}}, status, headers)


@pytest.mark.parametrize(
    ("answer", "error_type", "code"),
    [
        (refusal(401, f"Incorrect API key provided: {SECRET}"), UpstreamError, "upstream_refused"),
        (refusal(403, f"no, {SECRET}"), UpstreamError, "upstream_refused"),
        (refusal(404, "no such model"), UpstreamError, "upstream_refused"),
        (refusal(500, f"boom {SECRET}"), UpstreamError, "upstream_error"),
        (Response("<html>bad gateway</html>", 502), UpstreamError, "upstream_error"),
        (Response("", 302, {"location": "http://elsewhere.invalid/"}), UpstreamError, "upstream_redirect"),
        (refusal(429, "slow down"), RateLimitError, "upstream_rate_limit"),
        (Response("not events", 200), UpstreamError, "upstream_content_type"),
        (JSONResponse({"choices": []}), UpstreamError, "upstream_content_type"),
        ([], UpstreamError, "upstream_cut_off"),
        ([event("one")], UpstreamError, "upstream_cut_off"),
        ([event("one"), event(finish_reason="stop")], UpstreamError, "upstream_cut_off"),
        ([event("one", usage=USAGE)], UpstreamError, "upstream_cut_off"),
        ([event("one"), ConnectionError()], UpstreamError, "upstream_cut_off"),
        ([event("one"), "{not json"], UpstreamError, "upstream_malformed"),
        (["[" * 5000], UpstreamError, "upstream_malformed"),
        (["5"], UpstreamError, "upstream_malformed"),
        ([{"id": 5, "choices": "x"}], UpstreamError, "upstream_malformed"),
        ([{"id": "x", "model": "m", "choices": ["x"]}], UpstreamError, "upstream_malformed"),
        ([event("one"), {"error": {"message": f"overloaded {SECRET}"}}], UpstreamError, "upstream_error"),
        ([event("one"), {"error": "just text"}], UpstreamError, "upstream_error"),
    ],
)
async def test_failures_are_ours_to_explain_and_tell_no_secret(
    model: OpenAICompatibleModel,
    far_end: FarEnd,
    answer: Any,
    error_type: type,
    code: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    far_end.answer = answer
    with pytest.raises(error_type) as failure:
        await chunks_of(model)
    assert failure.value.code == code
    assert failure.value.retryable
    assert SECRET not in repr(failure.value) + str(failure.value) + caplog.text


async def test_what_the_user_got_wrong_comes_back_in_the_endpoints_words(
    model: OpenAICompatibleModel, far_end: FarEnd
) -> None:
    far_end.answer = refusal(400, f"temperature is too hot for {SECRET}", param="temperature", code="too_hot")
    with pytest.raises(BadRequestError) as failure:
        await chunks_of(model)
    assert str(failure.value) == "temperature is too hot for ***"
    assert (failure.value.param, failure.value.code) == ("temperature", "too_hot")

    far_end.answer = Response('{"detail": "max_tokens is too large"}', 422)
    with pytest.raises(BadRequestError, match="max_tokens is too large"):
        await chunks_of(model)


async def test_a_silent_endpoint_times_out(far_end_server: Server, far_end: FarEnd) -> None:
    far_end.answer = [event("one"), HANG]
    model = OpenAICompatibleModel(Endpoint("ours", f"{far_end_server.url}/v1", timeouts=Timeouts(silence=0.2)))
    with pytest.raises(UpstreamError) as failure:
        await chunks_of(model)
    assert failure.value.code == "upstream_timeout"
    await model.close()


async def test_an_endpoint_that_is_not_there() -> None:
    model = OpenAICompatibleModel(Endpoint("ours", "http://127.0.0.1:9/v1"))
    with pytest.raises(UpstreamError) as failure:
        await chunks_of(model)
    assert failure.value.code == "upstream_unreachable"
    await model.close()


# --- Wootz behind Wootz ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayServer]:
    folder = tmp_path_factory.mktemp("inner")
    with GatewayServer(folder, lambda: {"inner-name": ScriptedModel("inner-name")}) as server:
        yield server


async def test_wootz_behind_wootz(inner: GatewayServer) -> None:
    model = OpenAICompatibleModel(Endpoint("ours", f"{inner.url}/v1", inner.key, upstream_model="inner-name"))
    chunks = await chunks_of(model)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello, wörld"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.cached_tokens == 2
    completion = await collect_completion(model.complete(CompletionRequest(model="ours", prompt="Say")))
    assert completion.choices[0].text == "Hello, wörld"
    with pytest.raises(PayloadTooLargeError):
        await chunks_of(model, notes="x" * 70_000)
    await model.close()


async def test_our_own_mid_stream_error_is_understood(inner: GatewayServer) -> None:
    scripted = inner.gateway.models["inner-name"]
    assert isinstance(scripted, ScriptedModel)
    scripted.script = ["one", UpstreamError("the far end broke")]
    model = OpenAICompatibleModel(Endpoint("ours", f"{inner.url}/v1", inner.key, upstream_model="inner-name"))
    with pytest.raises(UpstreamError, match="the far end broke"):
        await chunks_of(model)
    await model.close()


# --- from the configuration ------------------------------------------------------------------------------------


async def test_models_open_with_their_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    remote = ModelConfig(base_url="https://api.example.com/v1", api_key="env:FAR_KEY", upstream_model="theirs")
    local = ModelConfig(source="file:model.gguf")
    config = Config(home=tmp_path, models={"far": remote, "near": local})
    monkeypatch.setenv("FAR_KEY", SECRET)
    models = open_models(config, {"near": tmp_path / "near.sock"})
    assert list(models) == ["far", "near"]
    assert models["far"].provider == "api.example.com"
    assert (models["near"].provider, await models["near"].ready()) == ("wootz", False)
    for model in models.values():
        await model.close()


@pytest.mark.parametrize(
    ("fields", "environ", "message"),
    [
        ({"api_key": "env:FAR_KEY"}, None, 'models.far.api_key: secret "env:FAR_KEY" is not set'),
        ({"api_key": "env:FAR_KEY"}, "clé\n", 'models.far.api_key: secret "env:FAR_KEY" holds characters'),
        ({"base_url": "api.example.com/v1"}, None, "models.far.base_url: not an http"),
        ({"base_url": "http://"}, None, "models.far.base_url: not an http"),
    ],
)
def test_what_cannot_work_refuses_to_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fields: dict, environ: str | None, message: str
) -> None:
    monkeypatch.delenv("FAR_KEY", raising=False)
    if environ:
        monkeypatch.setenv("FAR_KEY", environ)
    far = ModelConfig(**{"base_url": "https://api.example.com/v1", **fields})
    with pytest.raises(ConfigError, match="models") as refusal:
        open_models(Config(home=tmp_path, models={"far": far}), {})
    assert str(refusal.value).startswith(message)
    assert "clé" not in str(refusal.value)


# --- asked whole -----------------------------------------------------------------------------------------------


@pytest.fixture
async def whole(far_end_server: Server, far_end: FarEnd) -> AsyncGenerator[OpenAICompatibleModel, None]:
    model = OpenAICompatibleModel(
        Endpoint("ours", f"{far_end_server.url}/v1", SECRET, upstream_model="theirs", ask_whole=True)
    )
    yield model
    await model.close()


CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}


@pytest.mark.parametrize("said", [{"content": "Hello"}, {"content": None, "tool_calls": [CALL, CALL | {"id": "2"}]}])
async def test_a_whole_answer_is_that_of_a_stream(
    whole: OpenAICompatibleModel, model: OpenAICompatibleModel, far_end: FarEnd, said: dict[str, Any]
) -> None:
    calls = [{"index": index, **call} for index, call in enumerate(said.get("tool_calls", ()))]
    delta = {"role": "assistant", "reasoning_content": "hm", **said, **({"tool_calls": calls} if calls else {})}
    finish = "tool_calls" if calls else "stop"
    beginning = event() | {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}]}
    far_end.answer = [beginning, event(finish_reason=finish), USAGE_EVENT, "[DONE]"]
    streamed = await collect_chat(model.chat(ask()))
    message = {"role": "assistant", "reasoning_content": "hm", **said}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    answer = event() | {"object": "chat.completion", "choices": [choice], "usage": USAGE}
    far_end.answer = JSONResponse(answer)
    assert await collect_chat(whole.chat(ask())) == streamed
    assert "stream" not in far_end.body
    assert "stream_options" not in far_end.body


async def test_fields_that_we_do_not_know_are_in_the_answer(
    whole: OpenAICompatibleModel, model: OpenAICompatibleModel, far_end: FarEnd
) -> None:
    """Asked as a stream or whole, the same; in a stream a text and a list come in pieces."""
    outer, site = (
        {"system_fingerprint": "fp_1", "service_tier": "flex"},
        {"type": "url_citation", "url": "http://x.test"},
    )

    def part(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return event() | outer | {"choices": [choice | ({"content_filter_results": {}} if finish_reason else {})]}

    far_end.answer = [
        part({"role": "assistant", "content": "", "refusal": None}),
        part({"refusal": "I ca", "annotations": [site]}),
        part({"refusal": "n't", "annotations": [site]}),
        part({}, "stop"),
        USAGE_EVENT | outer,
        "[DONE]",
    ]
    streamed = await collect_chat(model.chat(ask()))
    message = {"role": "assistant", "content": "", "refusal": "I can't", "annotations": [site, site]}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "content_filter_results": {}}
    far_end.answer = JSONResponse(event() | outer | {"object": "chat.completion", "choices": [choice], "usage": USAGE})
    assert await collect_chat(whole.chat(ask())) == streamed
    said = streamed.model_dump(mode="json")
    assert said["choices"] == [choice | {"logprobs": None}]
    assert {name: said[name] for name in outer} == outer


async def test_a_caller_who_streams_is_streamed_to_and_so_is_thinking(
    whole: OpenAICompatibleModel, far_end: FarEnd
) -> None:
    for fields in ({"stream": True}, {"enable_thinking": True}):
        far_end.answer = HAPPY
        await chunks_of(whole, **fields)
        assert far_end.body["stream"] is True


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (event() | {"choices": []}, "upstream_cut_off"),
        (
            event() | {"choices": [{"index": 0, "message": {"content": "Hel"}, "finish_reason": None}]},
            "upstream_cut_off",
        ),
        (event() | {"choices": ["odd"]}, "upstream_malformed"),
        (["no object"], "upstream_malformed"),
        ({"error": {"message": "no"}}, None),
    ],
)
async def test_a_whole_answer_that_is_none(
    whole: OpenAICompatibleModel, far_end: FarEnd, answer: Any, code: str | None
) -> None:
    far_end.answer = JSONResponse(answer)
    with pytest.raises(UpstreamError) as caught:
        await collect_chat(whole.chat(ask()))
    assert code is None or caught.value.code == code


async def test_a_completion_asked_whole(whole: OpenAICompatibleModel, far_end: FarEnd) -> None:
    choice = {"index": 0, "text": "Hello", "finish_reason": "length", "logprobs": None}
    far_end.answer = JSONResponse(
        {"id": "x", "object": "text_completion", "created": 1, "model": "theirs", "choices": [choice], "usage": USAGE}
    )
    answer = await collect_completion(whole.complete(CompletionRequest(model="ours", prompt="hi")))
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("Hello", "length")
    assert answer.usage is not None
    assert answer.usage.total_tokens == 5
