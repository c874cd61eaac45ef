"""Calls come back out of the text that the templates write, and nothing else is taken for one."""

from __future__ import annotations

import pytest

from wootz.tokenization.built_in_templates import built_in_template
from wootz.tokenization.tool_markup import ParsedCall, parse_tool_calls

from .test_built_in_templates import ROLES, TOOL_TURNS


@pytest.mark.parametrize(
    ("template", "style", "end"),
    [("qwen", "tags", "<|im_end|>"), ("mistral", "mistral", "</s>"), ("llama3", "json", "<|eot_id|>")],
)
def test_what_a_template_writes_is_read(template: str, style, end: str) -> None:
    source = built_in_template(template, special_tokens=ROLES)
    before = source.render(TOOL_TURNS[:2], add_generation_prompt=True)
    written = source.render(TOOL_TURNS[:3], add_generation_prompt=False).removeprefix(before).rstrip()
    rest, calls = parse_tool_calls(written, style)
    assert calls == [ParsedCall("weather", {"city": "Zürich"}, "abcdefghi" if template == "mistral" else None)]
    assert rest == (end if style == "tags" else "")


def test_several_calls_and_words_around_them() -> None:
    call = '<tool_call>\n{"name": "f", "arguments": "{\\"x\\": 1}"}\n</tool_call>'
    assert parse_tool_calls(f"Let me see.\n{call}\n{call}", "tags") == ("Let me see.", [ParsedCall("f", {"x": 1})] * 2)
    mistral = 'ok[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]</s>'
    assert [call.name for call in parse_tool_calls(mistral, "mistral")[1]] == ["f", "g"]


@pytest.mark.parametrize(
    ("text", "style"),
    [
        ("<tool_call>{broken</tool_call>", "tags"),
        ('<tool_call>{"name": 3, "arguments": {}}</tool_call>', "tags"),
        ("[TOOL_CALLS] nothing", "mistral"),
        ('[TOOL_CALLS][{"name": "f", "arguments": {}}, 7]', "mistral"),
        ('{"name": "f", "parameters": {}} is an example', "json"),
        ('{"temperature": 3}', "json"),
        ("[]", "json"),
        ("plain", "json"),
    ],
)
def test_what_is_no_call_stays_text(text: str, style) -> None:
    assert parse_tool_calls(text, style) == (text, [])
