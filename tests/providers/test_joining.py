"""An answer folded from joined events is the one folded from the events themselves."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

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
