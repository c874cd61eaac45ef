"""The wire types of tools and of structured answers, and what a conversation with tools has to keep to.

A malformed history is refused here, by the name of the field: a model that is shown a result without its call, or
arguments that are no JSON, answers nonsense, and nobody would know why.

Source: the OpenAI API reference for chat completions; ``structured_outputs`` and ``guided_…`` are vLLM's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from wootz.core.journey import Journey

_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")


class Request(BaseModel):
    """Base of every request type: strict on what we know, and keeping fields that we don't."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())


class ModelRequest(Request):
    """Base of what is asked of a model: it has a journey, which no client writes and no endpoint is told."""

    model: str = Field(min_length=1, max_length=256)
    user: str | None = None
    _journey: Journey = PrivateAttr(default_factory=Journey)

    def _begin(self, _context: Any) -> None:
        object.__setattr__(self, "__pydantic_private__", {"_journey": Journey()})

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """pydantic would have each generation between here and ``cls`` look for the journey again (15 µs)."""
        cls.model_post_init = cls._begin

    @property
    def journey(self) -> Journey:
        """As ``self._journey``, which pydantic looks for in 3 µs; a request is asked for it ten times."""
        return self.__pydantic_private__["_journey"]  # pyright: ignore[reportOptionalSubscript]


class FunctionDefinition(Request):
    """A function that the model may call; ``parameters`` is the JSON Schema of its arguments, an object."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _is_well_formed(self) -> FunctionDefinition:
        if not _NAME.fullmatch(self.name):
            raise ValueError('"name" must be 1 to 128 letters, digits, or any of _ - . : /')
        if self.parameters and self.parameters.get("type", "object") != "object":
            raise ValueError('"parameters" must be a JSON Schema of type "object"')
        return self


class ToolDefinition(Request):
    """``type`` is "function" for every model; kinds that only some remote model knows are carried as they came."""

    type: str
    function: FunctionDefinition | None = None

    @model_validator(mode="after")
    def _function_is_there(self) -> ToolDefinition:
        if self.type == "function" and self.function is None:
            raise ValueError('a tool of type "function" needs the field "function"')
        return self


class FunctionName(Request):
    name: str


class ToolChoice(Request):
    """One certain tool."""

    type: str
    function: FunctionName | None = None

    @model_validator(mode="after")
    def _function_is_there(self) -> ToolChoice:
        if self.type == "function" and self.function is None:
            raise ValueError('a choice of type "function" needs the field "function"')
        return self


class ResponseFormat(Request):
    """``{"type": "text"}``, ``{"type": "json_object"}``, or ``{"type": "json_schema", "json_schema": {…}}``, where that
    has a "name", a "schema" and perhaps "strict"."""

    type: str
    json_schema: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _schema_is_there(self) -> ResponseFormat:
        if self.type == "json_schema":
            if self.json_schema is None:
                raise ValueError('"json_schema" is missing')
            if not isinstance(self.json_schema.get("name"), str):
                raise ValueError('"json_schema.name" must be a string')
            if not isinstance(self.json_schema.get("schema"), dict):
                raise ValueError('"json_schema.schema" must be an object')
        return self


class StructuredOutputs(Request):
    """vLLM's ``structured_outputs``: exactly one of these."""

    json_: dict[str, Any] | str | None = Field(default=None, alias="json")
    regex: str | None = Field(default=None, min_length=1)
    choice: list[str] | None = Field(default=None, min_length=1)
    grammar: str | None = Field(default=None, min_length=1, description="Lark as llguidance has it, or GBNF.")
    json_object: bool | None = None

    model_config = {"serialize_by_alias": True, "validate_by_name": True}

    @model_validator(mode="after")
    def _is_one(self) -> StructuredOutputs:
        given = [name for name in ("json_", "regex", "choice", "grammar") if getattr(self, name) is not None]
        if len(given) + bool(self.json_object) != 1:
            raise ValueError('give exactly one of "json", "regex", "choice", "grammar" and "json_object"')
        return self


class StructuredFields(ModelRequest):
    """What the answer has to be, in OpenAI's words or in vLLM's; at most one of them."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = Field(default=None, min_length=1)
    guided_choice: list[str] | None = Field(default=None, min_length=1)
    guided_grammar: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _structure_is_one(self) -> StructuredFields:
        if len(given := self.structures) > 1:
            raise ValueError(f'"{given[1]}" can\'t be given together with "{given[0]}"')
        return self

    @property
    def structures(self) -> list[str]:
        """The names of the fields that ask for a structure: none, or one."""
        if self.model_fields_set.isdisjoint(_STRUCTURES):  # As of nearly all.
            return []
        given = [name for name in _STRUCTURES if getattr(self, name) is not None]
        if self.response_format and self.response_format.type == "text":
            given.remove("response_format")
        return given


_STRUCTURES = tuple(StructuredFields.__annotations__)


# --- conversations ------------------------------------------------------------------------------------------------


class _Message(Protocol):
    @property
    def role(self) -> str: ...
    @property
    def content(self) -> Any: ...
    @property
    def tool_call_id(self) -> str | None: ...
    @property
    def tool_calls(self) -> Sequence[Any] | None: ...


def check_history(messages: Sequence[_Message]) -> None:
    """Raise ValueError, the field's path first, unless every message says something, and every call is well formed and
    answered once, right after it."""
    open: dict[str, str] = {}
    for number, message in enumerate(messages):
        if message.content is None and not (message.role == "assistant" and message.tool_calls):
            raise ValueError(f'"messages[{number}]" needs "content", as it is of role "{message.role}"')
        if message.role == "tool":
            _check_result(message, f"messages[{number}]", open)
            continue
        if open:
            _check_answered(open)
        if message.tool_calls is None:
            continue
        where = f"messages[{number}]"
        if message.role != "assistant":
            raise ValueError(f'"{where}.tool_calls" can only be in a message with role "assistant"')
        if not message.tool_calls:
            raise ValueError(f'"{where}.tool_calls" is empty; leave it out')
        for position, call in enumerate(message.tool_calls):
            path = f"{where}.tool_calls[{position}]"
            _check_call(call, path)
            if call.id in open:
                raise ValueError(f'"{path}.id" is the id of another call too')
            open[call.id] = path
    _check_answered(open)


def _check_call(call: Any, path: str) -> None:
    if not call.id:
        raise ValueError(f'"{path}.id" is empty')
    if not call.function.name:
        raise ValueError(f'"{path}.function.name" is empty')
    try:
        arguments = json.loads(call.function.arguments)
    except (ValueError, RecursionError):
        raise ValueError(f'"{path}.function.arguments" is not JSON') from None
    if not isinstance(arguments, dict):
        raise ValueError(f'"{path}.function.arguments" must be a JSON object')


def _check_result(message: _Message, where: str, open: dict[str, str]) -> None:
    if not message.tool_call_id:
        raise ValueError(f'"{where}.tool_call_id" is missing')
    if open.pop(message.tool_call_id, None) is None:
        raise ValueError(f'"{where}.tool_call_id" answers no open call of the assistant\'s message before it')


def _check_answered(open: dict[str, str]) -> None:
    for path in open.values():
        raise ValueError(f'"{path}" is not answered: a message with role "tool" has to follow')


def check_tools(tools: Sequence[ToolDefinition], choice: str | ToolChoice | None) -> None:
    """Raise ValueError for tools of one name, and for a choice that there is not."""
    names: set[str] = set()
    for number, tool in enumerate(tools):
        if tool.function is not None:
            if tool.function.name in names:
                raise ValueError(f'"tools[{number}].function.name" is the name of another tool too')
            names.add(tool.function.name)
    if isinstance(choice, str) and choice not in ("none", "auto", "required"):
        raise ValueError('"tool_choice" must be "none", "auto", "required", or name a function')
    if not tools and choice not in (None, "none", "auto"):
        raise ValueError('"tool_choice" is only allowed with "tools"')
    if isinstance(choice, ToolChoice) and choice.function is not None and choice.function.name not in names:
        raise ValueError('"tool_choice.function.name" is none of the tools')
