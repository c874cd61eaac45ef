"""Chatting from the console is a request like any other: same gateway, same limits, same record."""

from __future__ import annotations

import json


def events(answer) -> list[dict]:
    data = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    return [json.loads(event) for event in data if event != "[DONE]"]


async def test_an_answer_streams_and_leaves_its_record(house, user):
    answer = await user.chat("hello", temperature=0.5, seed=3)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("data: [DONE]\n\n")
    chunks = events(answer)
    text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert text == house.model.script
    assert chunks[-1]["usage"]["completion_tokens"] == 7
    assert (house.model.requests[0].temperature, house.model.requests[0].seed) == (0.5, 3)

    (worker,) = await house.keys.list()
    (record,) = await house.ledger.list()
    assert record.request_id == answer.headers["x-request-id"]
    assert (record.route, record.key_id, record.status) == ("/console/chat", worker.id, 200)
    assert (record.prompt_tokens, record.cached_tokens, record.completion_tokens) == (12, 8, 7)
    assert record.request_id in (await user.get("/requests")).text


async def test_an_answer_that_breaks_says_so_in_the_stream(house, user):
    answer = await user.chat("please fail")
    assert events(answer)[-1]["error"]["message"] == "the engine went away"
    assert "[DONE]" not in answer.text
    assert (await house.ledger.list())[0].status == 503


async def test_errors_before_the_first_token_are_the_apis(house, user, browser):
    unknown = await user.chat("hello", model="nothing")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    wrong = await user.chat("hello", temperature="hot")
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "temperature")
    async with browser() as limited:
        await limited.sign_in(await house.key("slow", requests_per_minute=1, models=["scripted"]))
        assert (await limited.chat("hello", model="other")).status_code == 404
        assert (await limited.chat("hello")).status_code == 200
        assert (await limited.chat("hello")).status_code == 429


async def test_a_stranger_cannot_chat(house, browser):
    async with browser() as stranger:
        assert (await stranger.chat("hello", csrf_token="")).status_code == 401
    assert house.model.requests == []
