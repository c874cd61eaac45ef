"""How the endpoints that speak OpenAI's protocol differ, as data: what each calls a request's fields, and how what they
answer becomes one form.

Sources: OpenAI's API reference; https://api-docs.deepseek.com/api/create-chat-completion; DashScope's compatible mode
(https://help.aliyun.com/en/model-studio/compatibility-of-openai-with-dashscope); https://docs.ollama.com/api/openai-compatibility;
vLLM's server (its reasoning was ``reasoning_content``, and is ``reasoning`` now).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wootz.core.sections import ProviderKind
from wootz.core.wire import Usage
from wootz.providers.capabilities import Capabilities


@dataclass(frozen=True, kw_only=True)
class Dialect:
    rename: Mapping[str, str] = field(default_factory=dict)
    """Fields of a request that go by another name there."""
    developer: bool = True
    """Whether it knows the role "developer"; where not, it is "system"."""
    unsigned: tuple[str, ...] = ("thinking_blocks", "extra_content")
    """What other providers hung on an earlier answer; it goes back only to who knows it."""


_OLDER = Dialect(rename={"max_completion_tokens": "max_tokens"}, developer=False)

DIALECTS: Mapping[ProviderKind, Dialect] = {
    "openai": Dialect(),
    "vllm": Dialect(),
    "wootz": Dialect(unsigned=()),
    "deepseek": _OLDER,
    "ollama": _OLDER,
    "dashscope-compatible": _OLDER,
}

OPENAI_REASONING = Dialect(rename={"max_tokens": "max_completion_tokens"})


def dialect_of(kind: ProviderKind, row: Capabilities | None) -> Dialect:
    """OpenAI's own reasoning models know only the newer name of the most tokens to write."""
    return OPENAI_REASONING if kind == "openai" and row and row.thinking else DIALECTS[kind]


def adapt_request(body: dict[str, Any], dialect: Dialect) -> dict[str, Any]:
    """The same request in the endpoint's words."""
    for ours, theirs in dialect.rename.items():
        if ours in body:
            body.setdefault(theirs, body[ours])
            del body[ours]
    for message in body.get("messages", ()):
        if message["role"] == "developer" and not dialect.developer:
            message["role"] = "system"
        for name in dialect.unsigned if message["role"] == "assistant" else ():
            message.pop(name, None)
            for call in message.get("tool_calls") or ():
                call.pop(name, None)
    return body


def adapt_choice(choice: dict[str, Any]) -> None:
    """What endpoints say in other words, in OpenAI's: in place, and only what is there."""
    # Some say "" for "not finished", and have reasons of their own for "finished".
    reason = choice.get("finish_reason")
    choice["finish_reason"] = _FINISH_REASONS.get(str(reason), "stop") if reason else None
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return
    if "reasoning" in delta:
        delta.setdefault("reasoning_content", delta.pop("reasoning"))
    for call in delta.get("tool_calls") or ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict) and isinstance(function.get("arguments"), dict):
            function["arguments"] = json.dumps(function["arguments"])


_FINISH_REASONS = {reason: reason for reason in ("stop", "length", "tool_calls", "content_filter")} | {
    "function_call": "tool_calls",
    "max_tokens": "length",
    "insufficient_system_resource": "length",  # DeepSeek, interrupted
}


def read_usage(said: Mapping[str, Any]) -> Usage:
    """An endpoint's usage, whichever of these names it uses. Raises ValueError for counts that are no numbers."""
    prompt, completion = said.get("prompt_tokens_details"), said.get("completion_tokens_details")
    return Usage.count(
        _count(said, "prompt_tokens"),
        _count(said, "completion_tokens"),
        cached=_count(prompt, "cached_tokens") or _count(said, "prompt_cache_hit_tokens", "cached_tokens"),
        cache_write=_count(prompt, "cache_write_tokens", "cache_creation_input_tokens"),
        reasoning=_count(completion, "reasoning_tokens"),
    )


def _count(said: Any, *names: str) -> int:
    """By the first of these names that tells more than nothing."""
    if not isinstance(said, dict):
        return 0
    for name in names:
        if (value := said.get(name)) is not None:
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"a usage whose {name} is no count")
            if value:
                return value
    return 0
