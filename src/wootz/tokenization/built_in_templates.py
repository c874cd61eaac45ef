"""The chat templates of the families in use, for a model that is being made: each marks its ``{% generation %}``.

A model that exists brings its own template, which is always to be preferred.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

from wootz.core.errors import NotFoundError
from wootz.tokenization.chat_template import ChatTemplate

BUILT_IN_TEMPLATES = ("chatml", "qwen", "llama3", "mistral", "plain")


def built_in_template(name: str, *, special_tokens: Mapping[str, str] | None = None) -> ChatTemplate:
    """``special_tokens`` as for `ChatTemplate`: llama3 and mistral write ``bos_token``, mistral and plain
    ``eos_token``. Raises `NotFoundError` for another name."""
    if name not in BUILT_IN_TEMPLATES:
        raise NotFoundError(f'no built-in chat template "{name}"', hint=f"there is {', '.join(BUILT_IN_TEMPLATES)}")
    source = files("wootz.tokenization").joinpath("templates", f"{name}.jinja").read_text(encoding="utf-8")
    return ChatTemplate(source.removesuffix("\n"), special_tokens=special_tokens)
