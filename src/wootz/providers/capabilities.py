"""What each remote model can do, as dated data: `capabilities.toml`, each row with the day and the place it was read.

A request that a model is known not to manage is refused at once, with a 400 that names the field, instead of by the
endpoint in its own words, or by nobody because the endpoint drops what it does not know. A model that is not in the
table is asked for everything: the table may be behind, and it must never be why a new model can't be used.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from datetime import date
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from wootz.core import UnsupportedError
from wootz.core.sections import ProviderKind, Section
from wootz.core.tool_wire import ToolChoice
from wootz.core.wire import ChatRequest

Ability = Literal[
    "chat", "tools", "parallel_tools", "forced_tools", "json_object", "json_schema",
    "late_system", "images", "audio", "video", "files", "embeddings",
]  # fmt: skip
Thinking = Literal["off", "budget", "effort", "adaptive", "level", "switch"]

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,), "presence_penalty": (0,), "frequency_penalty": (0,), "repetition_penalty": (1,), "logit_bias": ({},),
    "min_p": (0,), "top_k": (0, -1), "logprobs": (False,), "top_logprobs": (0,), "ignore_eos": (False,),
    "min_tokens": (0,), "store": (False,), "stop_token_ids": ([],), "temperature": (1,), "top_p": (1,),
}  # fmt: skip
"""Values that ask for nothing: as good as not given."""


class Capabilities(Section):
    """A row. ``names`` are patterns, and the first row that has one wins; ``can`` lists what was read to work."""

    kind: ProviderKind
    names: tuple[str, ...]
    read: date
    source: str
    can: tuple[Ability, ...] = ()
    thinking: tuple[Thinking, ...] = ()
    """How it can be told to think; "off" where it can also be told not to. Empty: it does not think."""
    thinking_streams_only: bool = False
    """The endpoint takes thinking only with ``stream``. We always stream to it, so users need not."""
    native_only: bool = False
    """Not to be had over OpenAI's protocol."""
    refuses: tuple[str, ...] = ()
    """Fields that it refuses or drops, and ``field=value`` for one value of a field."""
    context: int | None = None
    max_output: int | None = None


@cache
def table() -> tuple[Capabilities, ...]:
    rows = tomllib.loads((files("wootz.providers") / "capabilities.toml").read_text())["model"]
    return tuple(Capabilities.model_validate(row) for row in rows)


def capabilities_of(kind: ProviderKind, upstream_model: str) -> Capabilities | None:
    """The model's row, or None: nothing is known of it."""
    rows = (row for row in table() if row.kind == kind)
    return next((row for row in rows if any(fnmatchcase(upstream_model, name) for name in row.names)), None)


def given(request: ChatRequest) -> dict[str, Any]:
    """The fields that ask for something, those we do not know included."""
    names = {*request.model_fields_set, *(request.model_extra or {})}
    values = {name: getattr(request, name) for name in sorted(names)}
    return {name: v for name, v in values.items() if v is not None and v not in NEUTRAL.get(name, ())}


def thinking_wanted(fields: Mapping[str, Any]) -> tuple[str, bool] | None:
    """``(field, whether)`` it is to think, in whichever notation the request says so; None when it says nothing."""
    if (effort := fields.get("reasoning_effort")) is not None:
        return "reasoning_effort", effort != "none"
    if isinstance(switch := fields.get("enable_thinking"), bool):
        return "enable_thinking", switch
    if isinstance(thinking := fields.get("thinking"), dict):
        return "thinking", thinking.get("type") != "disabled"
    return None


def check(row: Capabilities | None, request: ChatRequest) -> None:
    """Raises `UnsupportedError`, with the field, for the first thing that the row says the model can't do."""
    if row is None:
        return
    model = f'model "{request.model}"'
    check_native(row, request.model)
    if "chat" not in row.can:
        raise UnsupportedError(f"{model} cannot chat", param="model")
    for field, what in (*_needs(row, request), *_refused(row, given(request))):
        raise UnsupportedError(f"{model} has no {what} (read {row.read})", param=field)


def check_native(row: Capabilities | None, model: str) -> None:
    """Raises `UnsupportedError` for a model that OpenAI's protocol does not lead to."""
    if row is not None and row.native_only:
        message = f'model "{model}" is not to be had over the OpenAI-compatible mode'
        raise UnsupportedError(message, param="model", hint='give it a provider of kind "dashscope"')


def _needs(row: Capabilities, request: ChatRequest) -> Iterator[tuple[str, str]]:
    """The request's fields that need what the row lacks, each with that in words."""
    can = row.can
    if request.tools and "tools" not in can:
        yield "tools", "tools"
    if request.parallel_tool_calls and "parallel_tools" not in can:
        yield "parallel_tool_calls", "parallel tool calls"
    if (request.tool_choice == "required" or isinstance(request.tool_choice, ToolChoice)) and "forced_tools" not in can:
        yield "tool_choice", "way to be made to use a tool"
    form = request.response_format.type if request.response_format else "text"
    if form in ("json_object", "json_schema") and form not in can:
        yield "response_format", f'response_format of type "{form}"'
    for number, message in enumerate(request.messages):
        for place, part in enumerate(message.content if isinstance(message.content, list) else ()):
            if (ability := PARTS.get(part.type)) and ability not in can:
                yield f"messages[{number}].content[{place}]", f"eyes or ears for {ability}"


PARTS: Mapping[str, Ability] = {"image_url": "images", "input_audio": "audio", "video_url": "video", "file": "files"}


def _refused(row: Capabilities, fields: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if (wanted := thinking_wanted(fields)) is not None:
        field, on = wanted
        if on and not row.thinking:
            yield field, "thinking"
        if not on and row.thinking and "off" not in row.thinking:
            yield field, "way not to think"
    for entry in row.refuses:
        field, _, value = entry.partition("=")
        if field in fields and (not value or fields[field] == value):
            yield field, f'"{field}"' + (f' of "{value}"' if value else "")
