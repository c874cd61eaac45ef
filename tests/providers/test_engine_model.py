"""The local engine as a `LanguageModel`: a real engine process with a model in miniature."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from serving import until

from wootz.core import BadRequestError, UnavailableError, UnsupportedError, WootzError, collect_chat, collect_completion
from wootz.core.sections import SamplingConfig
from wootz.core.wire import ChatRequest, CompletionLogprobs, CompletionRequest
from wootz.engine import Engine, EngineClient, SamplingParams
from wootz.engine.protocol import TokenLogprob
from wootz.models import load
from wootz.providers import EngineModel
from wootz.providers.logprobs import CompletionLogprobsWriter
from wootz.tokenization import load_tokenizer


@pytest.fixture(scope="module")
def socket(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    socket = tmp_path_factory.mktemp("engine") / "tiny.sock"
    arguments = ["--name", "tiny", "--path", str(tiny_model_folder), "--socket", str(socket), "--config"]
    process = subprocess.Popen(
        [sys.executable, "-m", "wootz.engine.server", *arguments, '{"threads": 1, "cache_bytes": 16000000}'],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    yield socket
    process.terminate()
    process.wait(30)


@pytest.fixture
async def model(socket: Path) -> AsyncGenerator[EngineModel, None]:
    client = EngineClient(socket)
    client.start()
    model = EngineModel("tiny", client)
    await until(model.ready)
    yield model
    await model.close()


def ask(text: str = "Hello", **fields: Any) -> ChatRequest:
    defaults = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 8, "temperature": 0}
    return ChatRequest.model_validate({**defaults, "ignore_eos": True, **fields})


def go_on(prompt: Any, **fields: Any) -> CompletionRequest:
    return CompletionRequest.model_validate({"model": "tiny", "prompt": prompt, "temperature": 0, **fields})


def idle(model: EngineModel) -> Callable[[], Awaitable[bool]]:
    async def no_block_is_used() -> bool:
        return (await model.client.stats()).blocks_used == 0

    return no_block_is_used


async def test_a_chat_streams_and_ends_with_usage(model: EngineModel) -> None:
    *chunks, last = [chunk async for chunk in model.chat(ask())]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:])
    assert len({chunk.id for chunk in [*chunks, last]}) == 1
    assert chunks[-1].choices[0].finish_reason == "length"
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 8
    assert last.usage.total_tokens == last.usage.prompt_tokens + 8


async def test_a_request_that_names_no_temperature_gets_the_configured_one(model: EngineModel) -> None:
    asked = ask(logprobs=True, max_tokens=24)
    left_open = ask(logprobs=True, max_tokens=24, temperature=None)
    greedy = await collect_chat(model.chat(asked))
    configured = EngineModel("tiny", model.client, SamplingConfig(temperature=0))
    assert configured.defaults["temperature"] == 0
    assert (await collect_chat(configured.chat(left_open))).choices == greedy.choices
    assert (await collect_chat(model.chat(left_open))).choices != greedy.choices


async def test_the_developer_is_the_system_and_text_parts_are_one_text(model: EngineModel) -> None:
    old = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    new = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    answers = [await collect_chat(model.chat(ask(messages=messages))) for messages in (old, new)]
    assert answers[0].choices == answers[1].choices
    assert answers[0].usage is not None
    assert answers[1].usage is not None
    assert answers[0].usage.prompt_tokens == answers[1].usage.prompt_tokens


async def test_several_choices_and_a_seed(model: EngineModel) -> None:
    request = ask(n=3, temperature=1.5, seed=7)
    first, second = [await collect_chat(model.chat(request)) for _ in range(2)]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert all(choice.message.role == "assistant" for choice in first.choices)
    assert len({choice.message.content for choice in first.choices}) > 1
    assert first.choices == second.choices


async def test_a_stop_string_stops(model: EngineModel) -> None:
    whole = (await collect_chat(model.chat(ask(max_tokens=24)))).choices[0].message.content or ""
    stop = whole[5:8]
    cut = (await collect_chat(model.chat(ask(max_tokens=24, stop=stop)))).choices[0]
    assert (cut.message.content, cut.finish_reason) == (whole[: whole.index(stop)], "stop")


async def test_chat_logprobs(model: EngineModel) -> None:
    answer = await collect_chat(model.chat(ask(logprobs=True, top_logprobs=3)))
    assert answer.choices[0].logprobs is not None
    tokens = answer.choices[0].logprobs.content or []
    assert len(tokens) == 8
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.logprob <= 0
        assert token.token == token.top_logprobs[0].token, "greedy takes the likeliest"
    text = b"".join(bytes(token.bytes or []) for token in tokens).decode(errors="replace")
    assert text == answer.choices[0].message.content
    bare = await collect_chat(model.chat(ask(logprobs=True)))
    assert bare.choices[0].logprobs is not None
    assert [token.top_logprobs for token in bare.choices[0].logprobs.content or []] == [[]] * 8


async def test_completions_of_texts_and_token_ids(model: EngineModel) -> None:
    alone = await collect_completion(model.complete(go_on("Hello there")))
    assert alone.usage is not None
    assert alone.usage.completion_tokens <= 16, "OpenAI's default"
    many = await collect_completion(model.complete(go_on(["Once", "Hello there", "A"], n=2)))
    assert [choice.index for choice in many.choices] == list(range(6))
    assert [many.choices[i].text for i in (2, 3)] == [alone.choices[0].text] * 2
    ids = await collect_completion(model.complete(go_on([[5, 6, 7], [8]], max_tokens=4)))
    assert ids.usage is not None
    assert ids.usage.prompt_tokens == 4


async def test_completion_logprobs_and_echo(model: EngineModel) -> None:
    answer = (await collect_completion(model.complete(go_on("Hello", logprobs=2, max_tokens=6)))).choices[0]
    logprobs = answer.logprobs
    assert logprobs is not None
    assert [len(column) for column in (logprobs.tokens, logprobs.token_logprobs, logprobs.text_offset)] == [6] * 3
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        if not token.startswith("bytes:"):
            assert answer.text[offset:].startswith(token)
    assert all(token in (top or {}) for token, top in zip(logprobs.tokens, logprobs.top_logprobs, strict=True))
    echoed = (await collect_completion(model.complete(go_on("Hello", echo=True, max_tokens=6)))).choices[0]
    assert echoed.text == "Hello" + answer.text


async def test_a_given_text_is_scored_and_echoed(model: EngineModel, tiny_model_folder: Path) -> None:
    """``echo`` with ``logprobs`` as OpenAI has it: the prompt's tokens stand before the answer's, the first without a
    logprob; ``max_tokens=0`` is only that. Numbers are the training forward's."""
    loaded, tokenizer = load(tiny_model_folder), load_tokenizer(tiny_model_folder)
    text = "Hello there, how are you? "
    ids = tokenizer.encode(text)
    expected = loaded.logits(ids).log_softmax(-1)[:-1].gather(1, torch.tensor(ids[1:]).unsqueeze(1))[:, 0]
    for prompt in (text, ids):
        scored = (await collect_completion(model.complete(go_on(prompt, echo=True, logprobs=2, max_tokens=0)))).choices[
            0
        ]
        assert scored.text == text
        assert scored.finish_reason == "length"
        assert scored.logprobs is not None
        assert scored.logprobs.token_logprobs[0] is scored.logprobs.top_logprobs[0] is None
        assert scored.logprobs.token_logprobs[1:] == pytest.approx(expected.tolist(), abs=1e-5)
        for token, offset in zip(scored.logprobs.tokens, scored.logprobs.text_offset, strict=True):
            assert token.startswith("bytes:") or text[offset:].startswith(token)
    both = await collect_completion(model.complete(go_on(text, echo=True, logprobs=0, max_tokens=5, n=2, seed=1)))
    for choice in both.choices:
        assert choice.text.startswith(text)
        assert choice.logprobs is not None
        assert choice.logprobs.token_logprobs[1 : len(ids)] == pytest.approx(expected.tolist(), abs=1e-5)
        assert len(choice.logprobs.tokens) == len(ids) + 5
        for token, offset in zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True):
            assert token.startswith("bytes:") or choice.text[offset:].startswith(token)


async def test_beams_are_asked_for_as_of_vllm(model: EngineModel, tiny_model_folder: Path) -> None:
    fields = {"use_beam_search": True, "n": 3, "length_penalty": 0.5, "max_tokens": 6}
    answer = await collect_completion(model.complete(go_on("Hello", **fields)))
    params = SamplingParams(temperature=0, max_tokens=6, num_beams=3, n=3, length_penalty=0.5)
    (expected,) = Engine(tiny_model_folder).generate(["Hello"], params)
    assert [choice.text for choice in answer.choices] == [choice.text for choice in expected.choices]
    assert len({choice.text for choice in answer.choices}) > 1


def test_text_offsets_count_characters_that_broke_off() -> None:
    tokens = [TokenLogprob(0, text, 0.0, []) for text in (b"a", b"\xf0\x9f", b" such", b"\xe4\xb8", b"\x96", b"!")]
    layout = CompletionLogprobs()
    CompletionLogprobsWriter(0).add(layout, tokens)
    assert layout.text_offset == [0, 1, 2, 7, 7, 8]  # a� such世!


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
        ({"response_format": {"type": "structural_tag"}}, "response_format.type"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
         "messages[0].content[0]"),
    ],
)  # fmt: skip
async def test_what_the_engine_cannot_do_is_refused_by_name(model: EngineModel, fields: dict, param: str) -> None:
    with pytest.raises(UnsupportedError) as refusal:
        await collect_chat(model.chat(ask(**fields)))
    assert refusal.value.param == param


@pytest.mark.parametrize(
    ("prompt", "fields", "param"),
    [
        ("x", {"suffix": "end"}, "suffix"),
        ("x", {"best_of": 3}, "best_of"),
        ("x", {"max_tokens": 0}, "max_tokens"),
        ("x", {"use_beam_search": True, "n": 2, "length_penalty": "long"}, "length_penalty"),
        ("x", {"use_beam_search": True, "n": 2, "logprobs": 1}, "logprobs"),
        (["x"] * 1025, {}, "prompt"),
        ([5, 10**6], {}, "prompt"),
        ("x", {"stop_token_ids": [10**6]}, "stop_token_ids"),
        ("x", {"logit_bias": {"999999": 1}}, "logit_bias.999999"),
        ("x", {"min_tokens": 20}, "min_tokens"),
        ("x " * 3000, {}, None),
    ],
)
async def test_completions_refuse_by_name_too(model: EngineModel, prompt: Any, fields: dict, param: str | None) -> None:
    with pytest.raises(BadRequestError) as refusal:
        await collect_completion(model.complete(go_on(prompt, **fields)))
    assert refusal.value.param == param or param is None


async def test_harmless_fields_are_let_through(model: EngineModel) -> None:
    request = ask(tool_choice="auto", response_format={"type": "text"}, store=True, metadata={}, functions=[])
    assert (await collect_chat(model.chat(request))).choices[0].finish_reason == "length"


async def test_a_prompt_longer_than_the_model_remembers(model: EngineModel) -> None:
    with pytest.raises(BadRequestError) as refusal:
        await collect_chat(model.chat(ask("word " * 3000)))
    assert refusal.value.code == "context_length_exceeded"


async def test_closing_the_answer_frees_the_engine(model: EngineModel) -> None:
    for answer in (model.chat(ask(max_tokens=1500)), model.complete(go_on(["a", "b", "c"], max_tokens=1500))):
        await anext(answer)
        assert (await model.client.stats()).running > 0
        await answer.aclose()
        await until(idle(model))


async def test_one_failing_prompt_ends_the_others(model: EngineModel) -> None:
    with pytest.raises(WootzError):
        await collect_completion(model.complete(go_on(["a", "word " * 3000], max_tokens=1500)))
    await until(idle(model))


async def test_a_model_that_still_loads_is_unavailable(tmp_path: Path) -> None:
    client = EngineClient(tmp_path / "nobody.sock")
    client.start()
    model = EngineModel("tiny", client)
    assert not await model.ready()
    with pytest.raises(UnavailableError):
        await collect_chat(model.chat(ask()))
    await model.close()
