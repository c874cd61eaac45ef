"""A request of Anthropic's Messages API as a chat request.

Roles are blocks there: a user's message may hold the results of tools (which become messages of their own, before the
rest), an assistant's may hold thoughts and uses of tools. A thought comes back with its maker's signature; one without
is of a model that has none, and is told to it as ``reasoning_content``. Marks for the prompt cache stay on their parts.

Source: https://platform.claude.com/docs/en/api/messages and the types of the ``anthropic`` SDK.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from wootz.core import BadRequestError, UnsupportedError
from wootz.core.wire import ChatRequest, Count
from wootz.gateway.surfaces.surface import chat_request

Block = dict[str, Any]
Read = Callable[[Block, str], Block]
"""Of a block and its place."""

WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {"service_tier": ("auto", "standard_only"), "speed": ("standard",)}
"""Fields that we lack, and their values that ask for nothing."""


class TokenCountRequest(BaseModel):
    """What is read of a prompt; `MessagesRequest` has the rest."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str = Field(min_length=1, max_length=256)
    messages: list[dict[str, Any]] = Field(min_length=1)
    system: str | list[Block] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    cache_control: dict[str, Any] | None = None

    def to_chat(self) -> ChatRequest:
        """Raises `BadRequestError`, which names the field."""
        for name, value in (self.model_extra or {}).items():
            if value is not None and value not in WITHOUT_EFFECT.get(name, ()):
                raise UnsupportedError(f'"{name[:60]}" is not supported', param=name[:60])
        messages, origins = _conversation(self.system, self.messages)
        choice = self.tool_choice or {}
        fields = {
            "model": self.model,
            "messages": messages,
            "tools": [_tool(tool, number) for number, tool in enumerate(self.tools or ())] or None,
            "tool_choice": _tool_choice(choice),
            "parallel_tool_calls": False if choice.get("disable_parallel_tool_use") else None,
            "response_format": _response_format((self.output_config or {}).get("format")),
            "reasoning_effort": (self.output_config or {}).get("effort"),
            "cache_control": self.cache_control,
        }
        return chat_request(fields | _thinking(self.thinking) | self._sampling(), origins)

    def _sampling(self) -> dict[str, Any]:
        return {}


class MessagesRequest(TokenCountRequest):
    max_tokens: Count
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = Field(default=None, ge=0, le=1)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, lt=2**31)
    metadata: dict[str, Any] | None = None

    def _sampling(self) -> dict[str, Any]:
        return {
            "max_completion_tokens": self.max_tokens,
            "stream": self.stream,
            "stop": self.stop_sequences or None,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "user": (self.metadata or {}).get("user_id"),
        }


def _conversation(system: str | list[Block] | None, turns: list[dict[str, Any]]) -> tuple[list[Any], list[str]]:
    """The chat's messages, and what each is called here."""
    messages: list[dict[str, Any]] = []
    origins: list[str] = []

    def add(message: dict[str, Any], origin: str) -> None:
        messages.append(message)
        origins.append(origin)

    if system:
        add({"role": "system", "content": _parts(system, "system", _TEXT)}, "system")
    for number, turn in enumerate(turns):
        where = f"messages[{number}]"
        role, content = turn.get("role"), turn.get("content")
        match role:
            case "system":
                add({"role": "system", "content": _parts(content, f"{where}.content", _TEXT)}, where)
            case "user":
                results, rest = _split(content, {"tool_result"})
                for place, block in results:
                    add(_tool_result(block, f"{where}.content[{place}]"), where)
                if not isinstance(content, list) or rest or not results:
                    add({"role": "user", "content": _parts(content, f"{where}.content", _USER)}, where)
            case "assistant":
                add(_assistant(content, where), where)
            case _:
                raise BadRequestError('a message\'s role is "user" or "assistant"', param=f"{where}.role")
    if turns[-1].get("role") == "assistant":
        raise UnsupportedError(
            "an answer that is begun by the client can't be gone on with",
            param=f"messages[{len(turns) - 1}].role",
            hint='end with a message of role "user"',
        )
    return messages, origins


def _split(content: Any, kinds: set[str]) -> tuple[list[tuple[int, Block]], list[Block]]:
    """The blocks of these kinds with their places, and the others."""
    blocks = content if isinstance(content, list) else []
    chosen = [(place, block) for place, block in enumerate(blocks) if _kind(block) in kinds]
    return chosen, [block for block in blocks if _kind(block) not in kinds]


def _kind(block: Any) -> str:
    return str(block.get("type")) if isinstance(block, dict) else ""


def _assistant(content: Any, where: str) -> dict[str, Any]:
    special, rest = _split(content, {"tool_use", "thinking", "redacted_thinking"})
    text = _parts(content, f"{where}.content", _ASSISTANT) if rest or not isinstance(content, list) else None
    message: dict[str, Any] = {"role": "assistant", "content": text}
    signed: list[Block] = []
    for place, block in special:
        here = f"{where}.content[{place}]"
        if block["type"] == "tool_use":
            arguments = json.dumps(block.get("input") or {}, ensure_ascii=False)
            call = {"name": _string(block, "name", here), "arguments": arguments}
            calls = message.setdefault("tool_calls", [])
            calls.append({"id": _string(block, "id", here), "type": "function", "function": call})
        elif block["type"] == "redacted_thinking" or block.get("signature"):
            signed.append(block)
        else:
            message["reasoning_content"] = message.get("reasoning_content", "") + _string(block, "thinking", here)
    if signed:
        message["thinking_blocks"] = signed
    if text is None and "tool_calls" not in message:  # Thoughts that led to nothing.
        message["content"] = ""
    return message


def _tool_result(block: Block, where: str) -> dict[str, Any]:
    """OpenAI's results have no mark for a failure: it is said in words."""
    content: Any = _parts(block.get("content") or "", f"{where}.content", _RESULT)
    if block.get("is_error"):
        content = f"Error: {content}" if isinstance(content, str) else [{"type": "text", "text": "Error:"}, *content]
    message = {"role": "tool", "tool_call_id": _string(block, "tool_use_id", where), "content": content}
    return message | _mark(block)


def _parts(content: Any, where: str, kinds: Mapping[str, Read | None]) -> str | list[Block]:
    """A text, or parts; a kind that is None is told elsewhere."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise BadRequestError(f'invalid type for "{where}": expected a string or an array of blocks', param=where)
    parts = []
    for place, block in enumerate(content):
        here, kind = f"{where}[{place}]", _kind(block)
        if kind not in kinds:
            raise UnsupportedError(f'a block of type "{kind[:60]}" is not supported here', param=f"{here}.type")
        if (read := kinds[kind]) is not None:
            parts.append(read(block, here) | _mark(block))
    if all(part.keys() == {"type", "text"} for part in parts):
        return "\n\n".join(part["text"] for part in parts) if where == "system" else "".join(p["text"] for p in parts)
    return parts


def _mark(block: Block) -> dict[str, Any]:
    return {"cache_control": block["cache_control"]} if block.get("cache_control") else {}


def _string(block: Block, field: str, where: str) -> str:
    if not isinstance(value := block.get(field), str):
        param = f"{where}.{field}"
        raise BadRequestError(f'"{param}" must be a string', code="invalid_type", param=param)
    return value


def _text(block: Block, where: str) -> Block:
    return {"type": "text", "text": _string(block, "text", where)}


def _image(block: Block, where: str) -> Block:
    return {"type": "image_url", "image_url": {"url": _url(block.get("source"), f"{where}.source")}}


def _document(block: Block, where: str) -> Block:
    source = block.get("source")
    if isinstance(source, dict) and source.get("type") == "text":
        title = f"{block['title']}\n\n" if isinstance(block.get("title"), str) else ""
        return {"type": "text", "text": title + _string(source, "data", f"{where}.source")}
    return {"type": "file", "file": {"file_data": _url(source, f"{where}.source")}}


def _url(source: Any, where: str) -> str:
    match source:
        case {"type": "base64"}:
            return f"data:{_string(source, 'media_type', where)};base64,{_string(source, 'data', where)}"
        case {"type": "url"}:
            return _string(source, "url", where)
        case {"type": kind}:
            raise UnsupportedError(f'a source of type "{str(kind)[:60]}" is not supported', param=f"{where}.type")
    raise BadRequestError(f'"{where}" must be an object with a type', param=where)


_TEXT = {"text": _text}
_RESULT = {"text": _text, "image": _image, "document": _document}
_USER = _RESULT | {"tool_result": None}
_ASSISTANT = _TEXT | {"tool_use": None, "thinking": None, "redacted_thinking": None}


def _tool(tool: dict[str, Any], number: int) -> dict[str, Any]:
    if tool.get("type") not in (None, "custom"):
        kind = str(tool["type"])[:60]
        message = f'a tool of type "{kind}" is not supported; only those with an input_schema are'
        raise UnsupportedError(message, param=f"tools[{number}].type")
    function = {
        "name": tool.get("name"),
        "description": tool.get("description"),
        "parameters": tool.get("input_schema"),
    }
    if tool.get("strict") is not None:
        function["strict"] = tool["strict"]
    return {"type": "function", "function": {k: v for k, v in function.items() if v is not None}} | _mark(tool)


def _tool_choice(choice: dict[str, Any]) -> Any:
    match choice.get("type"):
        case None:
            return None
        case "auto" | "none" as kind:
            return kind
        case "any":
            return "required"
        case "tool":
            return {"type": "function", "function": {"name": choice.get("name")}}
    raise BadRequestError('a tool_choice\'s type is "auto", "any", "tool" or "none"', param="tool_choice.type")


def _thinking(thinking: dict[str, Any] | None) -> dict[str, Any]:
    """In the words that every provider here translates."""
    match thinking:
        case None:
            return {}
        case {"type": "disabled"}:
            return {"enable_thinking": False}
        case {"type": "adaptive"}:
            return {"enable_thinking": True}
        case {"type": "enabled", "budget_tokens": int(budget)}:
            return {"enable_thinking": True, "thinking_budget": budget}
    raise BadRequestError('"thinking" is adaptive, disabled, or enabled with "budget_tokens"', param="thinking")


def _response_format(form: Any) -> dict[str, Any] | None:
    match form:
        case None:
            return None
        case {"type": "json_schema", "schema": dict(schema)}:
            return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    raise BadRequestError(
        '"output_config.format" has the type "json_schema" and a "schema"', param="output_config.format"
    )
