"""The running platform, from outside: what its callers see, and what is left when things die under it."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import AsyncIterator

import httpx
import litellm
import openai
import psutil
import pytest

QUESTION = [{"role": "user", "content": "Where is the sea?"}]
BLOCK_SIZE = 16
LONG = {"model": "tiny", "messages": QUESTION, "max_tokens": 1500, "ignore_eos": True, "stream": True}


@pytest.fixture
def client(platform):
    with openai.OpenAI(base_url=f"{platform.url}/v1", api_key=platform.key, max_retries=0) as client:
        yield client


@pytest.fixture
async def http(platform) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {platform.key}"}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=platform.url, headers=headers, timeout=60, limits=limits) as http:
        yield http


async def engine_counts(http: httpx.AsyncClient, name: str) -> float:
    """A gauge or counter of the tiny model's engine; -1 while there is none."""
    lines = (await http.get("/metrics")).text.splitlines()
    names = (f"wootz_engine_{name}{{", f"wootz_engine_{name}_total{{")
    return next((float(line.split()[-1]) for line in lines if line.startswith(names)), -1)


async def eventually(condition, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.1)


# --- the official client ------------------------------------------------------------------------------------------


def test_openai_client_lists_models_and_chats(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    answer = client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=12)
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage.completion_tokens <= 12
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_openai_client_streams_what_it_answers_whole(client):
    options = {"model": "tiny", "messages": QUESTION, "max_tokens": 30, "temperature": 0}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len(chunks) > 3


async def test_async_openai_client_streams(platform):
    async with openai.AsyncOpenAI(base_url=f"{platform.url}/v1", api_key=platform.key) as client:
        stream = await client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=8, stream=True)
        chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


def test_logprobs_choices_stop_and_seed(client):
    answer = client.chat.completions.create(
        model="tiny", messages=QUESTION, max_tokens=6, n=3, logprobs=True, top_logprobs=4, seed=7, temperature=1
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    for choice in answer.choices:
        for token in choice.logprobs.content:
            assert len(token.top_logprobs) == 4
            assert token.logprob <= token.top_logprobs[0].logprob + 1e-6
    again = client.chat.completions.create(
        model="tiny", messages=QUESTION, max_tokens=6, n=3, logprobs=True, top_logprobs=4, seed=7, temperature=1
    )
    assert [c.message.content for c in again.choices] == [c.message.content for c in answer.choices]

    greedy = {"model": "tiny", "prompt": "The house", "max_tokens": 20, "temperature": 0}
    text = client.completions.create(**greedy).choices[0].text
    stop = text[len(text) // 2 :][:4]
    stopped = client.completions.create(**greedy, stop=[stop]).choices[0]
    assert stopped.text == text[: text.index(stop)]
    assert stopped.finish_reason == "stop"


def test_errors_are_the_clients_own_kinds(client, platform):
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody", messages=QUESTION)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "sea " * 5000}])
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{platform.url}/v1", api_key="sk-wootz-wrong", max_retries=0).models.list()


def test_each_request_leaves_one_row(client, platform):
    raw = client.chat.completions.with_raw_response.create(model="tiny", messages=QUESTION, max_tokens=5)
    (row,) = platform.ledger(f"request_id = '{raw.headers['x-request-id']}'")
    usage = raw.parse().usage
    assert (row["prompt_tokens"], row["completion_tokens"]) == (usage.prompt_tokens, usage.completion_tokens)
    assert (row["model"], row["status"], row["route"]) == ("tiny", 200, "/v1/chat/completions")


# --- other clients ------------------------------------------------------------------------------------------------


def test_litellm_chats_and_streams(platform):
    ask = {
        "model": "openai/tiny", "api_base": f"{platform.url}/v1", "api_key": platform.key,
        "messages": QUESTION, "max_tokens": 20, "temperature": 0,
    }  # fmt: skip
    whole = litellm.completion(**ask)
    assert whole.usage.completion_tokens > 0
    chunks = list(litellm.completion(**ask, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert next(c.usage for c in chunks if getattr(c, "usage", None)).total_tokens == whole.usage.total_tokens
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**ask | {"model": "openai/nobody"})


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_curl_chats_and_streams(platform):
    def curl(body: dict[str, object], *options: str) -> str:
        command = ["curl", "-sS", "--no-buffer", *options, f"{platform.url}/v1/chat/completions"]
        headers = ["-H", f"Authorization: Bearer {platform.key}", "-H", "Content-Type: application/json"]
        return subprocess.check_output([*command, *headers, "-d", json.dumps(body)], timeout=60).decode()

    body = {"model": "tiny", "messages": QUESTION, "max_tokens": 20, "temperature": 0}
    whole = json.loads(curl(body, "--fail"))
    events = curl(body | {"stream": True}, "--fail").split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    deltas = [json.loads(event.removeprefix("data: "))["choices"][0]["delta"] for event in events[:-2]]
    assert "".join(delta.get("content") or "" for delta in deltas) == whole["choices"][0]["message"]["content"]

    refused = curl(body | {"model": "nobody"}, "--write-out", "%{http_code}")
    assert refused.endswith("404")
    assert json.loads(refused.removesuffix("404"))["error"]["code"] == "model_not_found"


# --- a shared prefix ----------------------------------------------------------------------------------------------


async def test_a_shared_prefix_of_a_thousand_tokens_is_computed_once(http):
    """Told twice: by the answer's usage, and by the engine's own count of the tokens that it put through the model."""
    prefix = [300 + index % 500 for index in range(1000)]

    async def computed() -> float:
        """By a report of the engine that is younger than everything asked before."""
        age = await engine_counts(http, "uptime_seconds")
        await eventually(lambda: _is(engine_counts(http, "uptime_seconds"), lambda now: now not in (age, -1)))
        return await engine_counts(http, "prompt_tokens_computed")

    async def ask(ending: list[int]) -> tuple[int, int]:
        body = {"model": "tiny", "prompt": prefix + ending, "max_tokens": 1}
        usage = (await http.post("/v1/completions", json=body)).raise_for_status().json()["usage"]
        return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]

    before = await computed()
    assert await ask([1, 2, 3]) == (1003, 0)
    between = await computed()
    assert between - before == 1003
    num_tokens, cached = await ask([4, 5, 6, 7, 8])
    assert num_tokens == 1005
    assert 1000 - BLOCK_SIZE < cached <= 1000
    assert await computed() - between == num_tokens - cached


# --- things die ---------------------------------------------------------------------------------------------------


async def ask_for_long(http: httpx.AsyncClient) -> tuple[str, str]:
    """One long streamed request; how it ended (``done``, ``error event``, a status) and its id."""
    async with http.stream("POST", "/v1/chat/completions", json=LONG) as response:
        request_id = response.headers["x-request-id"]
        if response.status_code != 200:
            assert "error" in json.loads(await response.aread())
            return str(response.status_code), request_id
        events = [line.removeprefix("data: ") async for line in response.aiter_lines() if line.startswith("data:")]
    if "error" in events[-1]:
        return "error event", request_id
    return ("done" if events[-1] == "[DONE]" else "cut"), request_id


async def test_a_killed_engine_comes_back_and_no_request_is_lost_or_doubled(platform, http):
    before = {row["request_id"] for row in platform.ledger()}
    requests = [asyncio.create_task(ask_for_long(http)) for _ in range(24)]
    await eventually(lambda: _is(engine_counts(http, "running"), lambda running: running > 0))
    platform.child("wootz.engine.server").kill()
    outcomes = await asyncio.gather(*requests)
    assert {how for how, _ in outcomes} <= {"done", "error event", "503"}
    assert any(how != "done" for how, _ in outcomes)

    late = await http.post("/v1/chat/completions", json=LONG | {"stream": False, "max_tokens": 3})
    assert late.status_code in (200, 503)
    await eventually(lambda: _is(http.get("/readyz"), lambda response: response.status_code == 200))
    afterwards = await http.post("/v1/chat/completions", json=LONG | {"stream": False, "max_tokens": 3})
    assert afterwards.status_code == 200
    platform.wait_for(r"tiny ended \(SIGKILL\); starting it again")

    sent = {request_id for _, request_id in outcomes} | {r.headers["x-request-id"] for r in (late, afterwards)}
    rows = [row["request_id"] for row in platform.ledger() if row["request_id"] not in before]
    assert len(rows) == len(set(rows))
    assert set(rows) == sent


async def test_clients_that_leave_free_what_they_used(platform, http):
    await eventually(lambda: _is(engine_counts(http, "requests_cancelled"), lambda count: count >= 0))
    cancelled = await engine_counts(http, "requests_cancelled")
    before = len(platform.ledger())

    async def leave() -> None:
        async with http.stream("POST", "/v1/chat/completions", json=LONG) as response:
            async for _ in response.aiter_lines():
                return

    await asyncio.gather(*(leave() for _ in range(200)))
    await eventually(lambda: _is(engine_counts(http, "requests_cancelled"), lambda count: count == cancelled + 200))
    assert await engine_counts(http, "running") == await engine_counts(http, "waiting") == 0
    await eventually(lambda: _is(_rows(platform), lambda rows: rows == before + 200))
    assert len(platform.ledger("client_disconnected")) == 200
    assert (await http.post("/v1/chat/completions", json=LONG | {"stream": False, "max_tokens": 3})).status_code == 200


async def test_a_killed_http_process_comes_back_with_every_ended_request(platform, http):
    answers = await asyncio.gather(
        *(http.post("/v1/chat/completions", json=LONG | {"stream": False, "max_tokens": 4}) for _ in range(8))
    )
    platform.child("wootz.app.http").kill()

    async def answers_again() -> bool:
        try:
            return (await http.get("/readyz")).status_code == 200
        except httpx.TransportError:
            return False

    await eventually(answers_again)
    ids = {answer.headers["x-request-id"] for answer in answers}
    assert ids <= {row["request_id"] for row in platform.ledger("status = 200")}
    assert psutil.pid_exists(platform.process.pid)


async def _is(awaitable, condition) -> bool:
    return condition(await awaitable)


async def _rows(platform) -> int:
    return len(platform.ledger())
