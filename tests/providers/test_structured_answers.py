"""Tools and structured answers as the official SDK asks for them: its requests, over HTTP, to a real engine process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field
from serving import GatewayServer, until

from wootz.core import collect_chat, collect_completion
from wootz.core.wire import ChatRequest, CompletionRequest
from wootz.engine import EngineClient
from wootz.providers import EngineModel
from wootz.tokenization import load_tokenizer

ASK: list[Any] = [{"role": "user", "content": "Hello"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Zürich", "Bern"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "now", "strict": True, "parameters": {"type": "object"}}},
]


class Dish(BaseModel):
    name: str = Field(max_length=5)
    taste: Literal["sweet", "salty"]
    spices: list[Literal["salt", "pepper"]] = Field(max_length=2)


class Named(EngineModel):
    """Connects in the server's own event loop."""

    def __init__(self, socket: Path) -> None:
        client = EngineClient(socket)
        client.start()
        super().__init__("tiny", client)


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


@pytest.fixture(scope="module")
def server(socket: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayServer]:
    with GatewayServer(tmp_path_factory.mktemp("gateway"), lambda: {"tiny": Named(socket)}) as server:
        deadline = time.monotonic() + 150
        while httpx.get(f"{server.url}/readyz").status_code != 200:
            assert time.monotonic() < deadline, "the engine never came up"
            time.sleep(0.1)
        yield server


@pytest.fixture
def sdk(server: GatewayServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0)


@pytest.fixture
async def model(socket: Path) -> AsyncGenerator[EngineModel, None]:
    model = Named(socket)
    await until(model.ready)
    yield model
    await model.close()


def ask(sdk: openai.OpenAI, **fields: Any) -> Any:
    defaults = {"model": "tiny", "messages": ASK, "max_tokens": 300, "temperature": 2, "seed": 4}
    return sdk.chat.completions.create(**defaults | fields)


@pytest.mark.parametrize("temperature", [0, 2])
def test_sdk_parses_a_pydantic_model(sdk: openai.OpenAI, temperature: int) -> None:
    answer = sdk.chat.completions.parse(
        model="tiny", messages=ASK, response_format=Dish, temperature=temperature, max_tokens=300, seed=1
    )
    dish = answer.choices[0].message.parsed
    assert isinstance(dish, Dish)
    assert answer.choices[0].model_extra == {"guarantee": "schema"}


def test_sdk_sees_that_a_structure_was_cut(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        sdk.chat.completions.parse(model="tiny", messages=ASK, response_format=Dish, max_tokens=5)


def test_json_mode_is_json(sdk: openai.OpenAI, tiny_model_folder: Path) -> None:
    closing = load_tokenizer(tiny_model_folder).encode("}", add_special_tokens=False)
    ends = {str(closing[0]): 100, "2": 100}  # an object that ends as soon as it may
    answer = ask(sdk, response_format={"type": "json_object"}, logit_bias=ends)
    assert isinstance(json.loads(answer.choices[0].message.content), dict)
    assert answer.choices[0].guarantee == "json"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_streamed_call_is_the_call(sdk: openai.OpenAI, choice: Any) -> None:
    fields = {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False}
    whole = ask(sdk, **fields).choices[0]
    assert whole.finish_reason == "tool_calls"
    assert whole.message.content is None
    (call,) = whole.message.tool_calls
    assert call.type == "function"
    if choice != "required":
        assert call.function.name == "weather"
        jsonschema.validate(json.loads(call.function.arguments), SCHEMA)

    name, arguments, reasons, ids = "", [], [], []
    for chunk in ask(sdk, stream=True, **fields):
        for part in chunk.choices:
            reasons.append(part.finish_reason)
            for delta in part.delta.tool_calls or []:
                assert delta.index == 0
                name += delta.function.name or ""
                arguments.append(delta.function.arguments)
                ids += [delta.id] if delta.id else []
    assert (name, "".join(arguments)) == (call.function.name, call.function.arguments)
    assert len(ids) == 1
    assert reasons[-1] == "tool_calls"
    assert choice == "required" or len([piece for piece in arguments if piece]) > 2


def test_sdk_stream_helper_parses_tools(sdk: openai.OpenAI) -> None:
    class Weather(BaseModel):
        city: Literal["Zürich", "Bern"]
        days: int = Field(ge=1, le=9)

    tool = openai.pydantic_function_tool(Weather)
    with sdk.chat.completions.stream(
        model="tiny",
        messages=ASK,
        tools=[tool],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=300,
        temperature=2,
        seed=4,
    ) as stream:
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Weather)


def test_a_round_trip(sdk: openai.OpenAI) -> None:
    """Question, call, result, answer; the template knows no tools, so the engine writes them in words."""
    first = ask(sdk, tools=TOOLS, tool_choice="required", parallel_tool_calls=False).choices[0].message
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "sunny"}
    answer = ask(sdk, messages=[*ASK, first.model_dump(exclude_none=True), result], tools=TOOLS, tool_choice="none")
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].message.content


def test_a_call_that_is_cut_off_is_no_call(sdk: openai.OpenAI) -> None:
    fields = {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "weather"}}, "logprobs": True}
    seen = False
    for length in (30, 34, 38, 42):
        choice = ask(sdk, max_tokens=length, **fields).choices[0]
        assert choice.finish_reason == "length"
        assert choice.message.tool_calls is None
        last = [c for c in ask(sdk, max_tokens=length, stream=True, **fields) if c.choices][-1].choices[0]
        if broken := choice.message.model_extra.get("incomplete_tool_calls"):
            seen = True
            assert broken[0]["function"]["name"] == "weather"
            assert last.delta.tool_calls[-1].model_extra == {"incomplete": True}
        assert last.finish_reason == "length"
    assert seen


def test_vllm_fields_and_plain_completions(sdk: openai.OpenAI) -> None:
    answer = ask(sdk, extra_body={"guided_choice": ["yes", "no"]})
    assert answer.choices[0].message.content in ("yes", "no")
    for body in (
        {"guided_regex": "[ab]{3}"},
        {"structured_outputs": {"regex": "[ab]{3}"}},
        {"guided_grammar": 'root ::= [ab] [ab] [ab]'},
    ):  # fmt: skip
        text = sdk.completions.create(model="tiny", prompt="x", temperature=2, extra_body=body).choices[0].text
        assert len(text) == 3
        assert set(text) <= {"a", "b"}
    schema = json.dumps({"const": "x"})
    assert sdk.completions.create(model="tiny", prompt="x", extra_body={"guided_json": schema}).choices[0].text == '"x"'


def test_errors_name_the_field(sdk: openai.OpenAI, server: GatewayServer) -> None:
    unsupported = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"uniqueItems": True}}}
    for fields, param in (
        ({"response_format": unsupported}, "response_format.json_schema.schema"),
        ({"extra_body": {"guided_regex": "("}}, "guided_regex"),
        ({"messages": [*ASK, {"role": "tool", "tool_call_id": "a", "content": "x"}]}, "messages[1].tool_call_id"),
        ({"tool_choice": "required"}, "tool_choice"),
    ):
        with pytest.raises(openai.BadRequestError) as refusal:
            ask(sdk, **fields)
        assert refusal.value.param == param
    body = {"model": "tiny", "messages": [*ASK, {"role": "assistant", "tool_calls": [{"type": "function"}]}]}
    response = httpx.post(
        f"{server.url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {server.key}"}
    )
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages[1].tool_calls[0].id"


async def test_several_choices_with_stop_strings(model: EngineModel) -> None:
    request = ChatRequest.model_validate(
        {"model": "tiny", "messages": ASK, "n": 3, "temperature": 2, "seed": 1, "stop": ['"', "i"], "max_tokens": 300,
         "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}
    )  # fmt: skip
    answer = await collect_chat(model.chat(request))
    for choice in answer.choices:
        assert (choice.finish_reason, choice.guarantee) == ("stop", "schema")
        jsonschema.validate(json.loads(choice.message.content or ""), SCHEMA)
    completion = CompletionRequest.model_validate(
        {"model": "tiny", "prompt": ["a", "b"], "n": 2, "guided_choice": ["yes", "no"], "max_tokens": 20}
    )
    texts = [choice.text for choice in (await collect_completion(model.complete(completion))).choices]
    assert len(texts) == 4
    assert set(texts) <= {"yes", "no"}
