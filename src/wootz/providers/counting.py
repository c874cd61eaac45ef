"""How many tokens a prompt has: endpoints of OpenAI's protocol that can say so, each asked in its kind's way.

OpenAI counts what `/v1/responses` would read (https://platform.openai.com/docs/api-reference/responses/input-tokens),
vLLM what its chat template makes of it (``/tokenize``, beside ``/v1``), another Wootz as Anthropic does
(``/v1/messages/count_tokens``). None of them charges for it. DeepSeek and Ollama have nothing of the kind, and the
tokenizer in DashScope's SDK names only models that are long superseded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from wootz.core import UnsupportedError
from wootz.core.sections import ProviderKind
from wootz.core.wire import ChatRequest
from wootz.providers.anthropic_request import COUNTED, messages_request


class Counting(NamedTuple):
    path: str
    """After the base URL."""
    body: Callable[[ChatRequest, str], dict[str, Any]]
    """Of a request, and the endpoint's name for the model."""
    field: str
    """Of the answer."""


def _to_vllm(request: ChatRequest, model: str) -> dict[str, Any]:
    return request.model_dump(include={"messages", "tools"}, exclude_unset=True) | {"model": model}


def _to_wootz(request: ChatRequest, model: str) -> dict[str, Any]:
    body = messages_request(request, model, None)
    return {name: body[name] for name in COUNTED if name in body}


def _to_openai(request: ChatRequest, model: str) -> dict[str, Any]:
    """A chat in the items of `/v1/responses`. Raises `UnsupportedError` for a part that has none."""
    chat = request.model_dump(include={"messages", "tools", "response_format"}, exclude_unset=True)
    body: dict[str, Any] = {"model": model, "input": [item for m in chat["messages"] for item in _items(m)]}
    if tools := chat.get("tools"):
        body["tools"] = [
            {"parameters": None, "strict": None} | tool["function"] | {"type": "function"} for tool in tools
        ]
    if (form := chat.get("response_format")) is not None:
        body["text"] = {"format": {"type": form["type"], **(form.get("json_schema") or {})}}
    return body


def _items(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    if message["role"] == "tool":
        text = content if isinstance(content, str) else "".join(part.get("text") or "" for part in content or ())
        return [{"type": "function_call_output", "call_id": message["tool_call_id"], "output": text}]
    items: list[dict[str, Any]] = []
    if content:
        said = content if isinstance(content, str) else [_part(part, message["role"]) for part in content]
        items.append({"role": message["role"], "content": said})
    for call in message.get("tool_calls") or ():
        items.append({"type": "function_call", "call_id": call["id"], **call["function"]})
    return items


def _part(part: Mapping[str, Any], role: str) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "output_text" if role == "assistant" else "input_text", "text": part["text"]}
    if part["type"] == "image_url":
        image = part["image_url"]
        return {"type": "input_image", "image_url": image["url"], "detail": image.get("detail") or "auto"}
    raise UnsupportedError(f'the tokens of a part of type "{part["type"]}" can\'t be counted', param="messages")


COUNTERS: Mapping[ProviderKind, Counting] = {
    "openai": Counting("responses/input_tokens", _to_openai, "input_tokens"),
    "vllm": Counting("../tokenize", _to_vllm, "count"),
    "wootz": Counting("messages/count_tokens", _to_wootz, "input_tokens"),
}
