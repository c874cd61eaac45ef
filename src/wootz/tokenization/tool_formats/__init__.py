"""How models write tool calls and thoughts: one small file a format, and the reader that all share. The public face."""

from __future__ import annotations

from wootz.core.errors import ConfigError
from wootz.tokenization.tool_formats.base import ParsedCall, ToolFormat
from wootz.tokenization.tool_formats.cursor import (
    Arguments,
    CallBroken,
    CallEnd,
    CallStart,
    Event,
    Reasoning,
    Text,
)
from wootz.tokenization.tool_formats.deepseek import DeepSeek3, DeepSeek31
from wootz.tokenization.tool_formats.grammar import JSON_OPTIONS, Grammar, Tool
from wootz.tokenization.tool_formats.harmony import Harmony
from wootz.tokenization.tool_formats.hermes import Hermes
from wootz.tokenization.tool_formats.llama3 import Llama3
from wootz.tokenization.tool_formats.mistral import Mistral, MistralArgs
from wootz.tokenization.tool_formats.pythonic import Gemma, Pythonic
from wootz.tokenization.tool_formats.qwen_xml import QwenXML
from wootz.tokenization.tool_formats.react import ReAct
from wootz.tokenization.tool_formats.reader import (
    THINK,
    THINK_END,
    AnswerReader,
    Thinking,
    collect_calls,
    parse_tool_calls,
    said,
)

_ALL: tuple[ToolFormat, ...] = (
    Hermes(), QwenXML(), Llama3(), Mistral(), MistralArgs(), DeepSeek3(), DeepSeek31(), Pythonic(), Gemma(), Harmony(),
    ReAct(),
)  # fmt: skip
TOOL_FORMATS = {format.name: format for format in _ALL}

_SIGNS = (
    ("<function=", "qwen_xml"),
    ("<tool_call>", "hermes"),
    ("[ARGS]", "mistral_args"),
    ("[TOOL_CALLS]", "mistral"),
    ("function<｜tool▁sep｜>", "deepseek_v3"),
    ("function' + '<｜tool▁sep｜>", "deepseek_v3"),
    ("<｜tool▁sep｜>", "deepseek_v3.1"),
    ("<|channel|>", "harmony"),
    ("tool_code", "gemma"),
    ('"parameters": ', "llama3"),
    ("<|python_tag|>", "llama3"),
    ("func_name1(params_name1", "pythonic"),
)
"""What a template of each format has in it; the first that is found decides."""

FALLBACK = "hermes"
"""For a model whose template knows no tools: it is told the format in words."""


def tool_format(name: str) -> ToolFormat:
    """Raises `ConfigError` for a name that is none."""
    if name not in TOOL_FORMATS:
        raise ConfigError(f'no tool format "{name}"', hint=f"there is {', '.join(TOOL_FORMATS)}")
    return TOOL_FORMATS[name]


def detect_tool_format(template: str | None) -> ToolFormat:
    """The format that the chat template writes."""
    return TOOL_FORMATS[next((name for sign, name in _SIGNS if template and sign in template), FALLBACK)]


def knows_tools(template: str | None) -> bool:
    """Whether the chat template tells the model about tools at all."""
    return template is not None and "tools" in template


__all__ = [
    "JSON_OPTIONS",
    "THINK",
    "THINK_END",
    "TOOL_FORMATS",
    "AnswerReader",
    "Arguments",
    "CallBroken",
    "CallEnd",
    "CallStart",
    "Event",
    "Grammar",
    "ParsedCall",
    "Reasoning",
    "Text",
    "Thinking",
    "Tool",
    "ToolFormat",
    "collect_calls",
    "detect_tool_format",
    "knows_tools",
    "parse_tool_calls",
    "said",
    "tool_format",
]
