"""Grammars as text, in the dialect of Lark that llguidance reads (github.com/guidance-ai/llguidance, syntax.md).

Here they are only written; `wootz.engine` compiles them. A *lexeme* is what is matched as a whole (``TEXT``), a *rule*
what is made of lexemes. ``<[7]>`` is the token with id 7, which no text can spell; ``[lazy]`` ends a lexeme at its
first match, so that free text goes over into what follows as soon as a marker is complete.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WHITE_SPACE = r"(\n[ \t]{0,40}| )?"
"""Between JSON's tokens: what models write, compact or indented, and no endless run of it."""
JSON_OPTIONS = {"whitespace_pattern": WHITE_SPACE}


@dataclass(frozen=True)
class Tool:
    """A function to be called: its name, and the JSON Schema of its arguments (an object)."""

    name: str
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "object"})

    @property
    def properties(self) -> Mapping[str, Any]:
        return self.schema.get("properties") or {}

    @property
    def required(self) -> Sequence[str]:
        return self.schema.get("required") or ()


class Grammar:
    """Rules, collected. ``token_ids`` are the special tokens by their text: in a `literal`, these are tokens."""

    def __init__(self, token_ids: Mapping[str, int]) -> None:
        self.token_ids = token_ids
        self._rules: dict[str, str] = {"TEXT": r"/(.|\n)*/"}
        self._special = re.compile("|".join(map(re.escape, sorted(token_ids, key=len, reverse=True))) or r"(?!)")

    def rule(self, name: str, body: str) -> str:
        self._rules[name] = body
        return name

    def literal(self, text: str) -> str:
        """Exactly this text, the special tokens that it spells being tokens."""
        parts, at = [], 0
        for match in self._special.finditer(text):
            parts += [json.dumps(text[at : match.start()])] if at < match.start() else []
            parts.append(f"<[{self.token_ids[match[0]]}]>")
            at = match.end()
        parts += [json.dumps(text[at:])] if at < len(text) else []
        return " ".join(parts)

    def text_before(self, name: str, marker: str) -> str:
        """Any text, and then the marker at its first place."""
        if marker in self.token_ids:
            return f"TEXT {self.literal(marker)}"
        self.rule(f"{name}[lazy]", rf"/(.|\n)*{escape(marker)}/")
        return name

    def json(self, schema: Mapping[str, Any] | bool) -> str:
        schema = {**schema} if isinstance(schema, Mapping) else {"allOf": [schema]}
        return f"%json {json.dumps(schema | {'x-guidance': JSON_OPTIONS})}"

    def text(self, start: str) -> str:
        return "\n".join([f"start: {start}", *(f"{name}: {body}" for name, body in self._rules.items())])


def escape(text: str) -> str:
    """The regex of exactly this text, inside slashes."""
    return "".join(rf"\x{{{ord(c):x}}}" if not c.isalnum() and c not in "_ " else c for c in text)
