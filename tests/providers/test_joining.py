"""An answer folded from joined events is the one folded from the events themselves."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import from_json

from wootz.core import collect_chat
from wootz.core.wire import ChatChunk, Usage
from wootz.providers.joining import MOST, Joiner

deltas = st.fixed_dictionaries(
    {},
    optional={
        "role": st.just("assistant"),
        "content": st.sampled_from(["", "a", "bc ", None]),
        "reasoning_content": st.just("hm"),
        "tool_calls": st.just([{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{"}}]),
        "own": st.just(1),
    },
)
logprobs = st.sampled_from([None, None, {"content": [{"token": "a", "logprob": -1.0}]}])
choices = st.builds(
    lambda index, delta, logprobs, reason: {
        "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason,
    },
    st.sampled_from([0, 0, 0, 1]),
    deltas | st.just({"content": "x"}),
    logprobs,
    st.sampled_from([None, None, None, "stop"]),
)  # fmt: skip
events = st.builds(
    lambda choices: {"id": "i", "created": 1, "model": "m", "choices": choices}, st.lists(choices, max_size=2)
)


async def folded(events: list[dict[str, Any]]) -> dict[str, Any]:
    async def chunks() -> AsyncGenerator[ChatChunk, None]:
        for event in events:
            yield ChatChunk.model_validate(event)
        yield ChatChunk(id="i", created=1, model="m", choices=[], usage=Usage())

    return (await collect_chat(chunks())).model_dump()


def joined(events: list[dict[str, Any]], whole: bool = True) -> list[dict[str, Any]]:
    joiner = Joiner(whole=whole)
    return [ready for event in events for ready in joiner.add(event)] + list(joiner.rest())


def joined_unread(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As a stream is read: what is the last event but for its text is not parsed."""
    joiner, ready = Joiner(whole=True), []
    for event in events:
        data = json.dumps(event, ensure_ascii=bool(len(ready) % 2))
        unread = joiner.add_unread(data)
        ready += joiner.add(from_json(data), data) if unread is None else unread
    return [*ready, *joiner.rest()]


@given(st.lists(events, max_size=40))
async def test_events_that_are_not_parsed_say_the_same(events: list[dict[str, Any]]) -> None:
    assert joined_unread(events) == joined(events)


texts = st.text(max_size=6) | st.sampled_from(['"', "\\", "?", "i", "m", '","content":"', "é\n", "index"])


@given(st.lists(texts, max_size=40))
async def test_any_text_in_the_same_event_is_that_text(pieces: list[str]) -> None:
    events = [
        {"id": "i", "created": 1, "model": "m", "choices": [{"index": 0, "delta": {"content": piece}}]}
        for piece in pieces
    ]
    assert (await folded(joined_unread(events))) == await folded(events)


def test_most_events_are_not_parsed() -> None:
    joiner, parsed = Joiner(whole=True), 0
    for number in range(50):
        data = json.dumps({"choices": [{"index": 0, "delta": {"content": f"{number} words"}}]})
        if joiner.add_unread(data) is None:
            joiner.add(from_json(data), data)
            parsed += 1
    assert parsed == 2


@pytest.mark.parametrize(
    "put", ["1", "null", '"a","content":"b"', '"a"}},{"index":1,"delta":{"content":"b"', '"\\ud800"']
)
def test_what_is_no_text_in_its_place_is_parsed(put: str) -> None:
    joiner = Joiner(whole=True)
    for text in "abc":
        data = json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]})
        if joiner.add_unread(data) is None:
            joiner.add(from_json(data), data)
    assert joiner.add_unread(data.replace('"c"', put)) is None


@given(st.lists(events, max_size=40))
async def test_the_whole_answer_is_the_same(events: list[dict[str, Any]]) -> None:
    assert await folded(joined(events)) == await folded(events)
    assert joined(events, whole=False) == events


def test_text_goes_on_in_few_events_that_count_what_they_hold() -> None:
    opening = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
    piece = {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}]}
    ready = joined([opening, *[piece] * (2 * MOST + 3)])
    assert ready[:2] == [opening, piece], "whoever waits for the first token sees it"
    assert [event["num_parts"] for event in ready[2:]] == [MOST, MOST, 2]
    assert piece["choices"][0]["delta"]["content"] == "x"
