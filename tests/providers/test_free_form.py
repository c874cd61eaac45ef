"""JSON where nothing enforces it: read in spite of what models do to it, and asked for by the strongest means."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import ScriptedModel

from wootz.core import BadRequestError, UnsupportedError, UpstreamError
from wootz.core.wire import (
    ChatChunk,
    ChatRequest,
    ChunkChoice,
    Completion,
    CompletionChoice,
    CompletionRequest,
    Delta,
    Usage,
)
from wootz.providers.ask_json import ask_json
from wootz.providers.fill import fill
from wootz.providers.tolerant_json import NoJSONError, parse_all_json, parse_json

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab\"'}{,", max_size=4), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text("abc d", min_size=1, max_size=4), values, min_size=1, max_size=3)


@settings(max_examples=200, deadline=None)
@given(value=objects, indent=st.sampled_from([None, 2]))
def test_what_models_put_around_and_into_json(value: dict, indent: int | None) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    assert parse_json(text) == value
    assert parse_json(f"Sure! Here it is:\n```json\n{text}\n```\nAnything {{else}}?") == value
    assert parse_json(f"Sure, {{as you like}}: {text} Hope [that] helps") == value
    assert parse_json(f"{text[:-1].rstrip()},\n}}") == value
    assert parse_all_json(f"First {text} and then {text}.") == [value, value]
    assert parse_json(f"{text[:-1]}") == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": [1, 2,], "b": {"c": 3,},}', {"a": [1, 2], "b": {"c": 3}}),
        ("{'a': True, 'b': None, 'c': 'it\\'s'}", {"a": True, "b": None, "c": "it's"}),
        ('{"a": 1, // the first\n "b": 2 # the second\n}', {"a": 1, "b": 2}),
        ('{"a": "two\nlines"}', {"a": "two\nlines"}),
        ('Thought: {x} and [y].\n\n{"a":\n\n 1}', {"a": 1}),
        ("[]", []),
        ("0", 0),
    ],
)
def test_common_mistakes(text: str, value: Any) -> None:
    assert parse_json(text) == value


def test_no_json_says_how_the_answer_began() -> None:
    with pytest.raises(NoJSONError) as error:
        parse_json("I would rather not. " * 50)
    assert "I would rather not." in str(error.value)
    assert len(str(error.value)) < 300


SCHEMA = {"type": "object", "properties": {"mood": {"enum": ["good", "bad"]}}, "required": ["mood"]}
REQUEST = ChatRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "How are you?"}]})


class Limited(ScriptedModel):
    """Refuses response formats, as endpoints without them do."""

    def __init__(self, knows: tuple[str, ...], reason: str = "stop") -> None:
        super().__init__("m", ['Well: {"mood": ', '"good",}'])
        self.knows, self.reason = knows, reason

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        if request.response_format is not None and request.response_format.type not in self.knows:
            raise UnsupportedError("not here", param="response_format.type")
        self.asked.append(request)
        yield ChatChunk(id="1", model="m", choices=[ChunkChoice(delta=Delta(content="".join(self.script)))])
        yield ChatChunk(id="1", model="m", choices=[ChunkChoice(delta=Delta(), finish_reason=self.reason)])  # type: ignore[arg-type]
        yield ChatChunk(id="1", model="m", choices=[], usage=Usage())


@pytest.mark.parametrize(
    ("knows", "guarantee"), [(("json_schema",), "schema"), (("json_object",), "json"), ((), "prompted")]
)
async def test_the_strongest_means_are_taken_and_named(knows: tuple[str, ...], guarantee: str) -> None:
    model = Limited(knows)
    assert await ask_json(model, REQUEST, SCHEMA) == ({"mood": "good"}, guarantee)
    (asked,) = model.asked
    assert isinstance(asked, ChatRequest)
    assert (guarantee == "schema") == (len(asked.messages) == 1)
    assert guarantee == "schema" or '"good", "bad"' in asked.messages[0].text


async def test_half_a_structure_is_never_returned() -> None:
    with pytest.raises(UpstreamError):
        await ask_json(Limited((), reason="length"), REQUEST, SCHEMA)


class Continues(ScriptedModel):
    """Continues any text in one way, and heeds stop strings."""

    async def complete(self, request: CompletionRequest) -> AsyncGenerator[Completion, None]:
        self.asked.append(request)
        text = str(self.script[(len(self.asked) - 1) % len(self.script)])
        for stop in request.stop_strings:
            text = text.split(stop)[0]
        yield Completion(id="1", model="m", choices=[CompletionChoice(text=text, finish_reason="stop")])
        yield Completion(id="1", model="m", choices=[], usage=Usage())


async def test_only_values_are_generated() -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer"},
            "ok": {"type": "boolean"},
            "colour": {"enum": ["red", "green"]},
            "scores": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
        },
    }
    model = Continues("m", ['Ada", "age', " 36, and", "false, ", '"green"}', "1.50, 2", " nothing"])
    filled = await fill(model, "Describe her: ", schema, temperature=0)
    assert filled == {"name": "Ada", "age": 36, "ok": False, "colour": "green", "scores": [1.5, 0]}
    last = model.asked[-1]
    assert isinstance(last, CompletionRequest)
    assert str(last.prompt).endswith('{"name": "Ada", "age": 36, "ok": false, "colour": "green", "scores": [1.5, ')
    with pytest.raises(BadRequestError):
        await fill(model, "", {"anyOf": []})
