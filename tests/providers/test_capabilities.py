"""Every row of the capability table, asked whole and streamed by OpenAI's SDK through a gateway, for what it can do and
for what it can't."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import openai
import pytest
from fakes import anthropic, gemini
from fakes import openai as compatible
from fakes.far_end import SECRET, FarEnd
from serving import GatewayServer

from wootz.core import LanguageModel, UnsupportedError
from wootz.core.wire import ChatRequest
from wootz.providers import Endpoint
from wootz.providers.capabilities import Capabilities, capabilities_of, check, table
from wootz.providers.opening import PROVIDERS

TIME = {"type": "function", "function": {"name": "get_time"}}
PNG = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
WAV = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
MP4 = {"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}}
PDF = {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA", "filename": "a.pdf"}}
SCHEMA = {"name": "a", "schema": {"type": "object"}}

NEEDS: dict[str, tuple[dict[str, Any], str]] = {
    "tools": ({"tools": [TIME]}, "tools"),
    "forced_tools": ({"tools": [TIME], "tool_choice": TIME | {"function": {"name": "get_time"}}}, "tool_choice"),
    "parallel_tools": ({"tools": [TIME], "parallel_tool_calls": True}, "parallel_tool_calls"),
    "json_object": ({"response_format": {"type": "json_object"}}, "response_format"),
    "json_schema": ({"response_format": {"type": "json_schema", "json_schema": SCHEMA}}, "response_format"),
    "images": ({"messages": [{"role": "user", "content": [PNG]}]}, "messages[0].content[0]"),
    "audio": ({"messages": [{"role": "user", "content": [WAV]}]}, "messages[0].content[0]"),
    "video": ({"messages": [{"role": "user", "content": [MP4]}]}, "messages[0].content[0]"),
    "files": ({"messages": [{"role": "user", "content": [PDF]}]}, "messages[0].content[0]"),
}
"""What asks for each ability, and the field that a refusal names."""

VALUES: dict[str, Any] = {
    "temperature": 0.5, "top_p": 0.5, "top_k": 5, "n": 2, "seed": 1, "logit_bias": {"1": 1}, "logprobs": True,
    "min_p": 0.1, "presence_penalty": 0.5, "frequency_penalty": 0.5, "tool_choice": "required",
}  # fmt: skip

ROWS = table()
CHATTING = [number for number, row in enumerate(ROWS) if "chat" in row.can]


def name_of(row: Capabilities) -> str:
    """A model that the row's first pattern fits."""
    return row.names[0].replace("*", "x" if row.names[0].startswith("*") else "").replace("?", "9")


def labelled(numbers: list[int]) -> Any:
    return pytest.mark.parametrize("number", numbers, ids=[f"{ROWS[n].kind} {name_of(ROWS[n])}" for n in numbers])


@pytest.fixture(scope="module")
def far_ends() -> Iterator[dict[str, FarEnd]]:
    with ExitStack() as stack:
        ends = {"anthropic": anthropic.Anthropic(), "gemini": gemini.Gemini(), "openai": compatible.OpenAI()}
        for end, hello in zip(ends.values(), (anthropic.HELLO, gemini.HELLO, compatible.HELLO), strict=True):
            stack.enter_context(end).answer = hello
        yield ends


def end_of(row: Capabilities, far_ends: dict[str, FarEnd]) -> FarEnd:
    return far_ends.get(row.kind, far_ends["openai"])


@pytest.fixture(scope="module")
def sdk(far_ends: dict[str, FarEnd], tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    def models() -> dict[str, LanguageModel]:
        opened: dict[str, LanguageModel] = {}
        for number, row in enumerate(ROWS):
            path = "" if row.kind in far_ends and row.kind != "openai" else f"/{row.kind}"
            url = f"{end_of(row, far_ends).url}{path}/v1"
            name = f"row-{number}"
            opened[name] = PROVIDERS[row.kind](Endpoint(name, url, SECRET, upstream_model=name_of(row), kind=row.kind))
        return opened

    with GatewayServer(tmp_path_factory.mktemp("gate"), models) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0) as client:
            yield client


def ask(sdk: openai.OpenAI, number: int, *, stream: bool, **fields: Any) -> str:
    extra = {name: fields.pop(name) for name in list(fields) if name not in ("messages", "tools")}
    messages = fields.pop("messages", [{"role": "user", "content": "hi"}])
    answer: Any = sdk.chat.completions.create(
        model=f"row-{number}", messages=messages, stream=stream, extra_body=extra, **fields
    )
    if not stream:
        return answer.choices[0].message.content
    return "".join(choice.delta.content or "" for chunk in answer for choice in chunk.choices)


def refusal(sdk: openai.OpenAI, number: int, **fields: Any) -> str | None:
    with pytest.raises(openai.BadRequestError) as failure:
        ask(sdk, number, stream=False, **fields)
    assert failure.value.code == "unsupported_parameter"
    return failure.value.param


@labelled(CHATTING)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_what_a_model_can_do_is_asked_of_it(
    sdk: openai.OpenAI, far_ends: dict[str, FarEnd], number: int, stream: bool
) -> None:
    row = ROWS[number]
    asked = end_of(row, far_ends).asked
    wishes = [NEEDS[ability][0] for ability in row.can if ability in NEEDS]
    thinks = [{"reasoning_effort": "high"}] if row.thinking else []
    silent = [{"reasoning_effort": "none"}] if "off" in row.thinking else []
    for wish in [{}, *wishes, *thinks, *silent]:
        asked.clear()
        if "tool_choice" in row.refuses and "tool_choice" in wish:
            continue
        assert ask(sdk, number, stream=stream, **wish) == "Hello!", wish
        assert len(asked) == 1


@labelled(CHATTING)
def test_what_a_model_cannot_do_is_refused_before_it_is_asked(
    sdk: openai.OpenAI, far_ends: dict[str, FarEnd], number: int
) -> None:
    row = ROWS[number]
    asked = end_of(row, far_ends).asked
    asked.clear()
    for ability, (fields, param) in NEEDS.items():
        if ability not in row.can and ("tools" in row.can or "tools" not in fields or ability == "tools"):
            assert refusal(sdk, number, **fields) == param, ability
    if not row.thinking:
        assert refusal(sdk, number, enable_thinking=True) == "enable_thinking"
    if row.thinking and "off" not in row.thinking:
        assert refusal(sdk, number, enable_thinking=False) == "enable_thinking"
    for entry in row.refuses:
        field = entry.partition("=")[0]
        tools = {"tools": [TIME]} if field == "tool_choice" else {}
        assert refusal(sdk, number, **{field: VALUES[field]}, **tools) == field
    assert asked == []


@labelled([number for number in range(len(ROWS)) if number not in CHATTING])
def test_who_does_not_chat_says_so(sdk: openai.OpenAI, number: int) -> None:
    assert refusal(sdk, number) == "model"
    if "embeddings" in ROWS[number].can and ROWS[number].kind != "gemini":
        answer = sdk.embeddings.create(model=f"row-{number}", input="hi", encoding_format="float")
        assert answer.data[0].embedding == [0.5, -1.0]


# --- the table itself --------------------------------------------------------------------------------------------


def test_the_first_row_that_fits_is_the_models() -> None:
    for row in ROWS:
        assert capabilities_of(row.kind, name_of(row)) is row, row.names
    assert capabilities_of("openai", "a-model-of-tomorrow") is None
    assert capabilities_of("vllm", "gpt-4o") is None


def request_of(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "ours", "messages": [{"role": "user", "content": "hi"}], **fields})


def test_values_that_ask_for_nothing_are_no_wish() -> None:
    row = next(row for row in ROWS if "n" in row.refuses)
    check(row, request_of(n=1, logit_bias={}, top_k=-1, min_p=0, seed=None))
    check(None, request_of(n=9, logprobs=True))
    with pytest.raises(UnsupportedError):
        check(row, request_of(n=2))
