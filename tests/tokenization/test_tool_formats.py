"""Calls come back out of the text that templates and formats write, however it is cut, and nothing else is taken for
one; and what a format reads is what its grammar lets a model write."""

from __future__ import annotations

import json

import llguidance
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wootz.core import ConfigError
from wootz.tokenization import ByteTokenizer
from wootz.tokenization.built_in_templates import built_in_template
from wootz.tokenization.tool_formats import (
    TOOL_FORMATS,
    AnswerReader,
    CallBroken,
    Grammar,
    ParsedCall,
    Reasoning,
    Tool,
    collect_calls,
    detect_tool_format,
    parse_tool_calls,
    said,
    tool_format,
)

from .test_built_in_templates import ROLES, TOOL_TURNS

ONE_AT_A_TIME = ("react", "harmony")
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "flag": {"type": "boolean"},
        "deep": {"type": "object"},
        "list": {"type": "array"},
    },
    "additionalProperties": False,
}
TOOLS = [Tool("weather", SCHEMA), Tool("f.g-h", SCHEMA)]
arguments = st.fixed_dictionaries(
    {},
    optional={
        "city": st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8),
        "days": st.integers(-99, 99),
        "flag": st.booleans(),
        "deep": st.dictionaries(st.text("ab}\"'", max_size=3), st.integers(0, 9) | st.text("c]\\,)"), max_size=2),
        "list": st.lists(st.integers(0, 9) | st.none(), max_size=3),
    },
)  # fmt: skip
calls = st.lists(st.builds(ParsedCall, st.sampled_from(["weather", "f.g-h"]), arguments), min_size=1, max_size=3)
formats = st.sampled_from(list(TOOL_FORMATS.values()))


def bare(calls: list[ParsedCall]) -> list[tuple]:
    return [(call.name, call.arguments) for call in calls]


@pytest.mark.parametrize(
    ("template", "format", "end"),
    [("qwen", "hermes", "<|im_end|>"), ("mistral", "mistral", "</s>"), ("llama3", "llama3", "<|eot_id|>")],
)
def test_what_a_template_writes_is_read(template: str, format: str, end: str) -> None:
    source = built_in_template(template, special_tokens=ROLES)
    assert detect_tool_format(source.source).name == format
    before = source.render(TOOL_TURNS[:2], add_generation_prompt=True)
    written = source.render(TOOL_TURNS[:3], add_generation_prompt=False).removeprefix(before).rstrip()
    rest, calls = parse_tool_calls(written, tool_format(format))
    assert calls == [ParsedCall("weather", {"city": "Zürich"}, "abcdefghi" if template == "mistral" else None)]
    assert rest == (end if format == "hermes" else "")


@settings(max_examples=300, deadline=None)
@given(format=formats, calls=calls, sizes=st.lists(st.integers(1, 9), min_size=1), eager=st.booleans())
def test_calls_are_read_as_they_were_written_wherever_the_text_is_cut(format, calls, sizes, eager) -> None:
    calls = calls[:1] if format.name in ONE_AT_A_TIME else calls
    words = "" if format.only_first or format.name == "harmony" else "Let me see.\n"
    text = words + format.write(calls)
    reader, events, at = AnswerReader(format, TOOLS, eager=eager), [], 0
    while at < len(text):
        size = sizes[at % len(sizes)]
        events += reader.push(text[at : at + size])
        at += size
    events += reader.finish()
    assert bare(collect_calls(events)) == bare(calls)
    assert said(events) == words.strip()


@settings(max_examples=200, deadline=None)
@given(format=formats, calls=calls, required=st.booleans())
def test_what_a_format_writes_its_grammar_allows(format, calls, required) -> None:
    """Over bytes, so that nothing depends on a vocabulary. Parameters stand in the order of the schema."""
    calls = calls[:1] if format.name in ONE_AT_A_TIME else calls
    ordered = [ParsedCall(c.name, {k: c.arguments[k] for k in SCHEMA["properties"] if k in c.arguments}) for c in calls]
    text = format.write(ordered).removesuffix("<|call|>").replace("\\/", "/")
    matcher = begin(format, required=required)
    assert eat(matcher, text) == len(text.encode()), (text, matcher.get_error())
    assert matcher.is_accepting()


def test_a_grammar_leaves_no_way_to_a_tool_that_is_not_there() -> None:
    for format in TOOL_FORMATS.values():
        right = format.write([ParsedCall("weather", {"city": "x"})])
        for wrong in (right.replace("weather", "weather_info"), right.replace("city", "town")):
            assert eat(begin(format, required=True), wrong) < len(wrong.encode()), format.name


def begin(format, *, required: bool) -> llguidance.LLMatcher:
    grammar = Grammar({})
    text = grammar.text(format.start(grammar, TOOLS, parallel=True, content=None if required else "TEXT"))
    matcher = llguidance.LLMatcher(VOCABULARY, text, log_level=0)
    assert not matcher.is_error(), (format.name, matcher.get_error(), text)
    return matcher


def eat(matcher: llguidance.LLMatcher, text: str) -> int:
    return matcher.try_consume_tokens(ByteTokenizer().encode(text, add_special_tokens=False))


class _Bytes:
    is_tokenizer_wrapper, bos_token_id, eos_token_id, special_token_ids = True, None, 1, (0, 1, 2)
    tokens = [ByteTokenizer().token_bytes(id) or f"<{id}>".encode() for id in range(259)]  # noqa: RUF012

    def __call__(self, text):
        return [byte + 3 for byte in (text if isinstance(text, bytes) else text.encode())]


VOCABULARY = llguidance.LLTokenizer(_Bytes(), n_vocab=259, eos_token=[1])


def test_several_calls_and_words_around_them() -> None:
    call = '<tool_call>\n{"name": "f", "arguments": "{\\"x\\": 1}"}\n</tool_call>'
    hermes, mistral = tool_format("hermes"), tool_format("mistral")
    assert parse_tool_calls(f"Let me see.\n{call}\n{call}", hermes) == ("Let me see.", [ParsedCall("f", {"x": 1})] * 2)
    text = 'ok[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]</s>'
    assert [call.name for call in parse_tool_calls(text, mistral)[1]] == ["f", "g"]
    tagged = '<|python_tag|>{"type": "function", "name": "f", "parameters": {"x": [1]}}<|eom_id|>'
    assert parse_tool_calls(tagged, tool_format("llama3")) == ("", [ParsedCall("f", {"x": [1]})])
    python = "[f(x='it\\'s', y=(1, 2), z=None), g()]"
    found = bare(parse_tool_calls(python, tool_format("pythonic"))[1])
    assert found == [("f", {"x": "it's", "y": (1, 2), "z": None}), ("g", {})] or found[0][1]["y"] == [1, 2]


@pytest.mark.parametrize(
    ("text", "format"),
    [
        ("<tool_call>{broken</tool_call>", "hermes"),
        ('<tool_call>{"name": 3, "arguments": {}}</tool_call>', "hermes"),
        ("[TOOL_CALLS] nothing", "mistral"),
        ('[TOOL_CALLS][{"name": "f", "arguments": {}}, 7]', "mistral"),
        ('{"name": "f", "parameters": {}} is an example', "llama3"),
        ('{"temperature": 3}', "llama3"),
        ("[]", "llama3"),
        ("plain", "llama3"),
        ("[1] is a reference (to what?)", "pythonic"),
        ("no channel at all", "harmony"),
        ("Action: weather\nwith no input", "react"),
    ],
)
def test_what_is_no_call_stays_text(text: str, format: str) -> None:
    assert parse_tool_calls(text, tool_format(format)) == (text, [])


@pytest.mark.parametrize("format", TOOL_FORMATS)
def test_a_call_that_is_cut_off_is_never_complete(format: str) -> None:
    """At every place before its arguments end."""
    text = tool_format(format).write([ParsedCall("weather", {"city": "Zürich", "deep": {"a": 1}})])
    for length in range(text.index("1") + 1):
        reader = AnswerReader(tool_format(format), TOOLS)
        events = reader.push(text[:length]) + reader.finish()
        assert collect_calls(events) == []
        begun = any(not isinstance(event, CallBroken) and hasattr(event, "name") for event in events)
        assert begun == any(isinstance(event, CallBroken) for event in events)


def test_thoughts_are_no_text() -> None:
    call = tool_format("hermes").write([ParsedCall("weather", {})])
    for text, thinking in (
        (f"<think>\nHm, 1 < 2.\n</think>\n\nSo.{call}", "may"),
        (f"Hm, 1 < 2.</think>So.{call}", "begun"),
    ):
        reader = AnswerReader(tool_format("hermes"), TOOLS, thinking=thinking)
        events = [event for character in text for event in reader.push(character)] + reader.finish()
        assert "".join(e.text for e in events if isinstance(e, Reasoning)) == "Hm, 1 < 2."
        assert said(events) == "So."
        assert bare(collect_calls(events)) == [("weather", {})]
    reader = AnswerReader(None, thinking="may")
    assert said([*reader.push("<thin ice> is thin "), *reader.finish()]) == "<thin ice> is thin "


def test_harmony_parts_its_channels() -> None:
    text = (
        "<|channel|>analysis<|message|>I should look.<|end|><|start|>assistant"
        '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Bern"}'
    )
    reader = AnswerReader(tool_format("harmony"), TOOLS)
    events = [event for character in text for event in reader.push(character)] + reader.finish()
    assert "".join(e.text for e in events if isinstance(e, Reasoning)) == "I should look."
    assert bare(collect_calls(events)) == [("weather", {"city": "Bern"})]
    reader = AnswerReader(tool_format("harmony"))
    assert said(reader.push("<|channel|>final<|message|>Hello.") + reader.finish()) == "Hello."


@pytest.mark.parametrize(
    ("template", "format"),
    [
        ("{{ '<tool_call>' }}<function=", "qwen_xml"),
        ("[TOOL_CALLS]{{ name }}[ARGS]", "mistral_args"),
        ("<｜tool▁call▁begin｜>function<｜tool▁sep｜>", "deepseek_v3"),
        ("<｜tool▁sep｜>", "deepseek_v3.1"),
        ("<|start|>assistant<|channel|>final", "harmony"),
        ("nothing about it", "hermes"),
        (None, "hermes"),
    ],
)
def test_a_template_shows_its_format(template: str | None, format: str) -> None:
    assert detect_tool_format(template).name == format


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ConfigError, match="hermes"):
        tool_format("esperanto")
    assert json.dumps(sorted(TOOL_FORMATS))
