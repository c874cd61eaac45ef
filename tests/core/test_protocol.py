"""Streams fold into whole answers, and a model refuses what it cannot do."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wootz.core import LanguageModel, UnsupportedError, UpstreamError, collect_chat, collect_completion
from wootz.core.wire import (
    ChatChunk,
    ChatRequest,
    ChoiceLogprobs,
    ChunkChoice,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
    Delta,
    EmbeddingRequest,
    TokenLogprob,
    Usage,
)

Item = TypeVar("Item")
USAGE = Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5)


async def stream(items: Sequence[Item]) -> AsyncGenerator[Item, None]:
    for item in items:
        yield item


def piece(index: int = 0, **fields: Any) -> ChatChunk:
    outer = {name: fields.pop(name) for name in ("finish_reason", "logprobs") if name in fields}
    return ChatChunk(id="c1", created=7, model="m", choices=[ChunkChoice(index=index, delta=Delta(**fields), **outer)])


END = ChatChunk(id="c1", created=7, model="m", choices=[], usage=USAGE)


async def test_a_chat_stream_becomes_one_answer() -> None:
    chunks = [piece(role="assistant"), piece(content="Hel"), piece(content="lo"), piece(finish_reason="stop"), END]
    answer = await collect_chat(stream(chunks))
    assert (answer.id, answer.created, answer.model, answer.usage) == ("c1", 7, "m", USAGE)
    assert [(c.index, c.message.role, c.message.content, c.finish_reason) for c in answer.choices] == [
        (0, "assistant", "Hello", "stop")
    ]
    assert answer.choices[0].message.reasoning_content is None
    assert answer.choices[0].logprobs is None


@given(st.lists(st.tuples(st.integers(0, 4), st.text(max_size=5)), min_size=1, max_size=30))
async def test_interleaved_choices_are_told_apart_and_ordered(parts: list[tuple[int, str]]) -> None:
    answer = await collect_chat(stream([*(piece(index, content=text) for index, text in parts), END]))
    expected = {index: "".join(text for i, text in parts if i == index) for index, _ in sorted(parts)}
    assert [(choice.index, choice.message.content) for choice in answer.choices] == list(expected.items())


async def test_logprobs_and_reasoning_are_joined() -> None:
    one, two = (TokenLogprob(token=token, logprob=-1.0) for token in "ab")
    chunks = [
        piece(reasoning_content="th", logprobs=ChoiceLogprobs(content=[one])),
        piece(reasoning_content="ink", logprobs=ChoiceLogprobs(content=[two])),
        piece(content="x", finish_reason="length"),
        END,
    ]
    (choice,) = (await collect_chat(stream(chunks))).choices
    assert choice.message.reasoning_content == "think"
    assert choice.logprobs == ChoiceLogprobs(content=[one, two])
    assert chunks[0].choices[0].logprobs == ChoiceLogprobs(content=[one])  # the chunks are left as they were


async def test_tool_calls_come_in_fragments() -> None:
    def call(index: int, **fields: Any) -> dict:
        return {"index": index, **fields}

    chunks = [
        piece(tool_calls=[call(0, id="a", type="function", function={"name": "sum", "arguments": ""})]),
        piece(tool_calls=[call(0, function={"arguments": '{"x"'})]),
        piece(tool_calls=[call(1, id="b", function={"name": "now"}), call(0, function={"arguments": ": 1}"})]),
        piece(tool_calls=[call(10**12, id="c", function={"name": "far", "arguments": None})]),
        piece(finish_reason="tool_calls"),
        END,
    ]
    (choice,) = (await collect_chat(stream(chunks))).choices
    assert choice.message.content is None
    assert choice.message.tool_calls == [
        {"id": "a", "type": "function", "function": {"name": "sum", "arguments": '{"x": 1}'}},
        {"id": "b", "type": "function", "function": {"name": "now", "arguments": ""}},
        {"id": "c", "type": "function", "function": {"name": "far", "arguments": ""}},
    ]


async def test_completions_are_joined_with_their_logprobs() -> None:
    def part(text: str, index: int = 0, **fields: Any) -> Completion:
        logprobs = CompletionLogprobs(
            tokens=[text], token_logprobs=[-1.0], top_logprobs=[{text: -1.0}], text_offset=[len(text)]
        )
        choice = CompletionChoice(index=index, text=text, logprobs=logprobs, **fields)
        return Completion(id="c", model="m", choices=[choice])

    end = Completion(id="c", model="m", choices=[], usage=USAGE)
    parts = [part("b", 1), part("a"), part("cc", finish_reason="stop"), part("", 1, finish_reason="length"), end]
    answer = await collect_completion(stream(parts))
    assert [(c.index, c.text, c.finish_reason) for c in answer.choices] == [(0, "acc", "stop"), (1, "b", "length")]
    assert answer.choices[0].logprobs == CompletionLogprobs(
        tokens=["a", "cc"], token_logprobs=[-1.0, -1.0], top_logprobs=[{"a": -1.0}, {"cc": -1.0}], text_offset=[1, 2]
    )
    assert answer.usage == USAGE


@pytest.mark.parametrize("chunks", [[], [piece(content="half")], [piece(content="x", finish_reason="stop")]])
async def test_a_stream_without_its_last_chunk_has_failed(chunks: list[ChatChunk]) -> None:
    with pytest.raises(UpstreamError, match="broke off"):
        await collect_chat(stream(chunks))
    with pytest.raises(UpstreamError, match="broke off"):
        await collect_completion(stream([Completion(id="c", model="m", choices=[]) for _ in chunks]))


class Mute(LanguageModel):
    name = "mute"


async def test_a_model_refuses_what_it_does_not_do() -> None:
    model = Mute()
    with pytest.raises(UnsupportedError, match='model "mute" cannot chat'):
        model.chat(ChatRequest(model="mute", messages=[{"role": "user", "content": "x"}]))  # type: ignore[list-item]
    with pytest.raises(UnsupportedError, match="cannot continue plain text"):
        model.complete(CompletionRequest(model="mute", prompt="x"))
    with pytest.raises(UnsupportedError, match="has no embeddings"):
        await model.embed(EmbeddingRequest(model="mute", input="x"))
    assert await model.ready()
    await model.close()


async def test_what_has_a_field_of_its_own_is_not_told_twice() -> None:
    """Some endpoints send the whole message along with each of its pieces."""
    odd = {"index": 0, "delta": {"content": "hi", "incomplete_tool_calls": ["x"]}, "finish_reason": "stop"}
    chunk = {"id": "c1", "created": 7, "model": "m", "choices": [odd | {"message": {"content": "other"}}]}
    answer = await collect_chat(stream([ChatChunk.model_validate(chunk), END]))
    said = answer.model_dump_json()
    assert said.count('"message"') == 1
    assert answer.choices[0].message.content == "hi"
    assert "incomplete_tool_calls" not in said
