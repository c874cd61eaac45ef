"""Wire types: strict on what we support, tolerant of what we don't know, and in OpenAI's own shape going out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletion as OpenAIChatCompletion
from openai.types.chat import ChatCompletionChunk as OpenAIChatCompletionChunk
from pydantic import ValidationError

from wootz.core import wire
from wootz.core.wire import ChatRequest, CompletionRequest, EmbeddingRequest, Request

HELLO = [{"role": "user", "content": "hello"}]


def chat(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "m", "messages": HELLO} | fields)


def complete(**fields: Any) -> CompletionRequest:
    return CompletionRequest.model_validate({"model": "m", "prompt": "x"} | fields)


# --- requests -------------------------------------------------------------------------------------------------

WRONG_ANYWHERE = [
    {"model": ""},
    {"model": None},
    {"model": "m" * 257},
    {"temperature": "1"},
    {"temperature": 2.1},
    {"temperature": -0.1},
    {"temperature": float("nan")},
    {"temperature": True},
    {"top_p": 0},
    {"top_p": 1.5},
    {"top_k": -2},
    {"top_k": 2**31},
    {"min_p": 1.1},
    {"repetition_penalty": 0},
    {"repetition_penalty": float("inf")},
    {"presence_penalty": -2.5},
    {"frequency_penalty": "0"},
    {"logit_bias": {"1": 101}},
    {"logit_bias": {"x": 1}},
    {"logit_bias": {"-1": 1}},
    {"logit_bias": [1]},
    {"seed": 1.5},
    {"seed": 2**63},
    {"n": 0},
    {"n": 129},
    {"n": True},
    {"n": 1.0},
    {"stop": ""},
    {"stop": ["a", ""]},
    {"stop": ["a"] * 17},
    {"stop": [1]},
    {"stop_token_ids": ["1"]},
    {"max_tokens": -1},
    {"max_tokens": 2**70},
    {"max_tokens": "16"},
    {"min_tokens": -1},
    {"stream": "true"},
    {"stream": 1},
    {"stream_options": {"include_usage": True}},
    {"stream": True, "stream_options": {"include_usage": "yes"}},
    {"stream": True, "stream_options": []},
    {"ignore_eos": 0},
    {"user": 7},
]


@pytest.mark.parametrize("make", [chat, complete])
@pytest.mark.parametrize("wrong", WRONG_ANYWHERE, ids=lambda wrong: str(wrong)[:40])
def test_wrong_sampling_fields_are_refused_by_name(make: Any, wrong: dict[str, Any]) -> None:
    make()
    with pytest.raises(ValidationError) as caught:
        make(**wrong)
    told = json.dumps([(error["loc"], error["msg"]) for error in caught.value.errors()])
    assert list(wrong)[-1] in told


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": []},
        {"messages": "hello"},
        {"messages": [{"role": "wizard", "content": "x"}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "user", "content": 1}]},
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        {"messages": [{"role": "user", "content": [{"text": "no type"}]}]},
        {"messages": [{"role": "assistant", "tool_calls": []}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f"}}]}]},
        {"top_logprobs": 3},
        {"logprobs": True, "top_logprobs": 21},
        {"logprobs": 3},
        {"max_tokens": 0},
        {"max_completion_tokens": 0},
        {"tools": {}},
    ],
    ids=lambda wrong: str(wrong)[:60],
)
def test_wrong_chat_fields_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        chat(**wrong)


@pytest.mark.parametrize("prompt", ["", [], [""], [[]], [1, "a"], [True], [1.5], None, {"a": 1}, ["a", []]])
def test_wrong_prompts_are_refused(prompt: Any) -> None:
    with pytest.raises(ValidationError):
        complete(prompt=prompt)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a b", ["a b"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_a_prompt_is_one_or_many_texts_or_token_lists(prompt: Any, prompts: list) -> None:
    assert complete(prompt=prompt).prompts == prompts


def test_what_we_do_not_know_is_kept_for_who_does() -> None:
    part = {"type": "image_url", "image_url": {"url": "data:,"}}
    message = {"role": "user", "content": [{"type": "text", "text": "see "}, part, {"type": "text", "text": "it"}]}
    body = {"model": "m", "messages": [message], "service_tier": "flex", "metadata": {"a": 1}}
    request = ChatRequest.model_validate(body)
    assert request.model_dump(exclude_unset=True) == body
    assert request.messages[0].text == "see it"


def test_the_edges_of_what_is_allowed() -> None:
    request = chat(
        temperature=2, top_p=1, top_k=-1, logit_bias={"0": -100, "151935": 100}, seed=-(2**63), n=128, stop=["a"] * 16
    )
    assert (request.temperature, request.n) == (2.0, 128)
    assert chat(stop="end").stop_strings == ["end"]
    assert chat(stop=None).stop_strings == chat(stop=[]).stop_strings == []
    assert chat(logprobs=True, top_logprobs=0).top_logprobs == 0
    assert chat(stream=True, stream_options={"include_usage": True}).stream_options is not None
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    answered = {"role": "tool", "tool_call_id": "1", "content": "done"}
    assert chat(messages=[*HELLO, {"role": "assistant", "tool_calls": [call]}, answered]).messages[1].text == ""
    assert complete(max_tokens=0, echo=True).max_tokens == 0, "to score a prompt"
    EmbeddingRequest(model="m", input=[[1, 2], [3]])


def test_every_request_type_is_strict_and_tolerant() -> None:
    for kind in Request.__subclasses__():
        assert kind.model_config["strict"] is True
        assert kind.model_config["extra"] == "allow"


# --- answers, read by OpenAI's own types ----------------------------------------------------------------------


def test_a_whole_answer_is_what_openai_sends() -> None:
    logprob = wire.TokenLogprob(token="hi", logprob=-0.5, bytes=[104, 105])
    answer = wire.ChatCompletion(
        id=wire.new_id("chatcmpl"),
        model="m",
        choices=[
            wire.ChatChoice(
                message=wire.AnswerMessage(content="hi"),
                logprobs=wire.ChoiceLogprobs(content=[logprob]),
                finish_reason="stop",
            )
        ],
        usage=wire.Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2),
    )
    sent = json.loads(answer.model_dump_json())
    assert OpenAIChatCompletion.model_validate(sent, strict=True).choices[0].message.content == "hi"
    assert sent["choices"][0]["message"] == {"role": "assistant", "content": "hi"}
    assert sent["usage"] == {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}


def test_a_chunk_is_what_openai_sends() -> None:
    chunk = wire.ChatChunk(id="c", model="m", choices=[wire.ChunkChoice(delta=wire.Delta(content="hi"))])
    sent = json.loads(chunk.model_dump_json())
    assert OpenAIChatCompletionChunk.model_validate(sent, strict=True).choices[0].delta.content == "hi"
    # What OpenAI leaves out is left out; what clients index is there, if only as null.
    assert sent["choices"] == [{"index": 0, "delta": {"content": "hi"}, "logprobs": None, "finish_reason": None}]
    assert "usage" not in sent


def test_cached_tokens_are_none_unless_told() -> None:
    assert wire.Usage().cached_tokens == 0
    assert wire.Usage(prompt_tokens_details=wire.PromptTokensDetails(cached_tokens=5)).cached_tokens == 5


def test_ids_are_unguessable_and_distinct() -> None:
    ids = {wire.new_id("cmpl") for _ in range(1000)}
    assert len(ids) == 1000
    assert all(id.startswith("cmpl-") and len(id) == 37 for id in ids)
