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
from wootz.gateway.answers import StreamedAnswer
from wootz.providers.joining import MOST, Joiner, _Form

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


async def nothing() -> AsyncGenerator[ChatChunk, None]:
    return
    yield


def joined(events: list[dict[str, Any]], *, whole: bool = True, together: int = 1) -> list[dict[str, Any]]:
    """As they come so many at a time; spelled in two ways, as endpoints do."""
    joiner = Joiner(from_json, whole=whole)
    sent = [json.dumps(event, ensure_ascii=bool(number % 5)) for number, event in enumerate(events)]
    batches = [sent[begin : begin + together] for begin in range(0, len(sent), together)]
    return [ready for batch in batches for ready in joiner.add(batch)] + list(joiner.rest())


def written(events: list[dict[str, Any]]) -> list[bytes]:
    answer = StreamedAnswer(nothing(), include_usage=False)
    return b"".join(answer.events(ChatChunk.model_validate(event)) for event in events).split(b"\n\n")


together = st.integers(1, 12)


@given(st.lists(events, max_size=40), together)
async def test_the_whole_answer_is_the_same(events: list[dict[str, Any]], together: int) -> None:
    assert await folded(joined(events, together=together)) == await folded(events)


@given(st.lists(events, max_size=40), together)
async def test_what_is_streamed_is_taken_apart_again(events: list[dict[str, Any]], together: int) -> None:
    assert written(joined(events, whole=False, together=together)) == written(events)


texts = st.text(max_size=6) | st.sampled_from(['"', "\\", "?", "i", "m", '","content":"', "é\n", "index", "\x7f"])


@given(st.lists(texts, max_size=40), together)
async def test_any_text_in_the_same_event_is_that_text(pieces: list[str], together: int) -> None:
    events = [piece_event(piece) for piece in pieces]
    assert await folded(joined(events, together=together)) == await folded(events)
    assert written(joined(events, whole=False, together=together)) == written(events)


def piece_event(text: str) -> dict[str, Any]:
    return {"id": "i", "created": 1, "model": "m", "choices": [{"index": 0, "delta": {"content": text}}]}


@pytest.mark.parametrize(("whole", "num_chunks"), [(True, 2), (False, 6)])
def test_most_events_are_not_parsed(whole: bool, num_chunks: int) -> None:
    """Together with the first, some `MOST`; or as they came."""
    parsed = list[str]()
    joiner = Joiner(lambda data: parsed.append(data) or from_json(data), whole=whole)
    sent = [json.dumps(piece_event(f"{number} words")) for number in range(50)]
    chunks = [ready for begin in range(0, 50, 10) for ready in joiner.add(sent[begin : begin + 10])]
    assert set(parsed) == {sent[0]}
    assert len([*chunks, *joiner.rest()]) == num_chunks


@pytest.mark.parametrize(
    "put", ["1", "null", '"a","content":"b"', '"a"}},{"index":1,"delta":{"content":"b"', '"\\ud800"', '"a","b"', '["a"']
)
def test_what_is_no_text_in_its_place_is_parsed(put: str) -> None:
    parsed = list[str]()
    joiner = Joiner(lambda data: parsed.append(data) or {}, whole=True)
    joiner._form = _Form.of(data := json.dumps(piece_event("c")), piece_event("c"), "c")
    other = data.replace('"c"', put)
    list(joiner.add([data, other, data.replace('"c"', '"b"]'), data]))
    assert other in parsed


def test_text_goes_on_in_few_events_that_count_what_they_hold() -> None:
    opening = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
    piece = {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}]}
    ready = joined([opening, *[piece] * (2 * MOST + 3)])
    assert ready[0] == opening
    assert ready[1] == piece | {"pieces": ["x"]}, "whoever waits for the first token sees it"
    assert [len(event["pieces"]) for event in ready[2:]] == [MOST, MOST, 2]
    assert piece["choices"][0]["delta"]["content"] == "x"


@pytest.mark.parametrize("last", [{"delta": {}}, {"delta": {"content": "c"}}, {"delta": {"content": "c", "own": 1}}])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("role", [{}, {"role": "assistant"}], ids=["no role", "a role in each"])
def test_how_it_ended_is_told_once_and_last(whole: bool, last: dict[str, Any], role: dict[str, str]) -> None:
    """Also where a client reads along with one who waits for the whole answer."""
    opening = {"id": "i", "created": 1, "model": "m"}
    said = [{"delta": role | {"content": text}, "finish_reason": None} for text in ("a", "b", "b")]
    last = {"delta": last["delta"] and role | last["delta"]}
    events = [opening | {"choices": [{"index": 0, **choice}]} for choice in (*said, last | {"finish_reason": "stop"})]
    ready = joined(events, whole=whole, together=4)
    is_joined = "own" not in last["delta"]
    assert len(ready) == 1 + (not whole) + (not is_joined), "the first text goes ahead where somebody reads along"
    parts = [ChatChunk.model_validate(event).num_parts for event in ready]
    assert sum(parts) == (4 if last["delta"] else 3)
    assert written(ready) == written(events)


async def test_a_text_that_was_changed_on_its_way_is_not_taken_apart() -> None:
    (event,) = joined([piece_event("a"), piece_event("b"), piece_event("c")], together=3)
    chunk = ChatChunk.model_validate(event)
    assert chunk.num_parts == 3
    chunk.choices[0].delta.content = "***"
    assert StreamedAnswer(nothing(), include_usage=False).events(chunk) == (
        b'data: {"id":"i","object":"chat.completion.chunk","created":1,"model":"m",'
        b'"choices":[{"index":0,"delta":{"content":"***"},"logprobs":null,"finish_reason":null}]}\n\n'
    )
