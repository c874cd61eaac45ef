"""The surfaces over a real engine: what a fake could only claim (counts, stop strings, what a model can't read)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anthropic
import openai
import pytest
from sayings import WEATHER
from serving import GatewayServer, until

from wootz.engine import EngineClient
from wootz.providers import EngineModel
from wootz.telemetry import RequestRecord

PICTURE = "data:image/png;base64,iVBORw0KGgo="
TOOL = {"name": "weather", "description": "Looks out of the window.", "input_schema": WEATHER}
HELLO = [{"role": "user", "content": "Hello there"}]


@pytest.fixture(scope="module")
def server(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayServer]:
    home = tmp_path_factory.mktemp("engine")
    arguments = ["--name", "tiny", "--path", str(tiny_model_folder), "--socket", str(home / "tiny.sock"), "--config"]
    process = subprocess.Popen(
        [sys.executable, "-m", "wootz.engine.server", *arguments, '{"threads": 1, "cache_bytes": 16000000}'],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )

    def models() -> dict:
        client = EngineClient(home / "tiny.sock")
        client.start()
        return {"tiny": EngineModel("tiny", client)}

    with GatewayServer(home, models) as server:
        server.call(until(server.gateway.models["tiny"].ready))
        yield server
    process.terminate()
    process.wait(30)


@pytest.fixture
def claude(server: GatewayServer) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key=server.key, max_retries=0)


@pytest.fixture
def sdk(server: GatewayServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0)


def test_tokens_are_counted_as_the_engine_then_reads_them(claude: anthropic.Anthropic) -> None:
    for fields in ({}, {"system": "Be kind."}, {"tools": [TOOL]}):
        counted = claude.messages.count_tokens(model="tiny", messages=HELLO, **fields).input_tokens
        read = claude.messages.create(model="tiny", messages=HELLO, max_tokens=1, **fields).usage
        assert counted == read.input_tokens + read.cache_read_input_tokens > 0


def test_the_surfaces_give_the_answer_that_chat_gives(sdk: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    greedy = {"temperature": 0, "seed": 1}
    chat = sdk.chat.completions.create(model="tiny", messages=HELLO, max_tokens=12, **greedy)
    text = chat.choices[0].message.content
    response = sdk.responses.create(model="tiny", input=HELLO, max_output_tokens=12, temperature=0)
    assert (response.output_text, response.status) == (text, "incomplete")
    with claude.messages.stream(model="tiny", messages=HELLO, max_tokens=12, extra_body={"temperature": 0}) as stream:
        assert ("".join(stream.text_stream), stream.get_final_message().stop_reason) == (text, "max_tokens")


def test_the_stop_sequence_that_matched_is_told(claude: anthropic.Anthropic) -> None:
    ask = {"model": "tiny", "messages": HELLO, "max_tokens": 12, "extra_body": {"temperature": 0}}
    text = claude.messages.create(**ask).content[0].text
    stop = text[len(text) // 2 :][:2]
    answer = claude.messages.create(**ask, stop_sequences=["never said", stop])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", stop)


def test_a_schema_holds_on_both(sdk: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
    schema["additionalProperties"] = False
    form = {"type": "json_schema", "name": "letter", "schema": schema, "strict": True}
    response = sdk.responses.create(model="tiny", input=HELLO, max_output_tokens=200, text={"format": form})
    config = {"format": {"type": "json_schema", "schema": schema}}
    message = claude.messages.create(model="tiny", messages=HELLO, max_tokens=200, output_config=config)
    for text in (response.output_text, message.content[0].text):
        assert json.loads(text) in ({"a": "x"}, {"a": "y"})


def test_a_model_that_reads_text_refuses_an_image(sdk: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    part = {"type": "input_image", "image_url": PICTURE}
    with pytest.raises(openai.BadRequestError, match="text only"):
        sdk.responses.create(model="tiny", input=[{"role": "user", "content": [part]}])
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
    with pytest.raises(anthropic.BadRequestError, match="text only"):
        claude.messages.create(model="tiny", max_tokens=9, messages=[{"role": "user", "content": [image]}])


def test_the_ledger_says_what_is_certain_of_an_answer(server: GatewayServer, sdk: openai.OpenAI) -> None:
    def record_of(**fields) -> RequestRecord:
        answer = sdk.chat.completions.with_raw_response.create(model="tiny", messages=HELLO, **fields)
        return server.call(server.ledger.get(answer.headers["x-request-id"]))

    choice = record_of(extra_body={"structured_outputs": {"choice": ["yes", "no"]}})
    assert (choice.guarantee, choice.arithmetic) == ("schema", "float32")
    cut_off = record_of(response_format={"type": "json_object"}, max_tokens=1)
    assert (cut_off.guarantee, cut_off.finish_reason) == (None, "length")
    assert record_of(max_tokens=1).guarantee is None
