"""Rules: plain conditions on the request, written as data. The first rule whose every condition holds says which
targets there are for it, in its order; where none holds, all are there."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from wootz.core.sections.routes import RuleConfig
from wootz.core.tool_wire import ModelRequest
from wootz.gateway.routing.candidate import (
    Candidate,
    has_images,
    last_text,
    num_chars,
    offers_tools,
    wants_structure,
)

LOOKED_AT = 2000
"""Characters of a text that its script is told by."""


def by_rules(candidates: Sequence[Candidate], request: ModelRequest, rules: Sequence[RuleConfig]) -> list[Candidate]:
    rule = next((rule for rule in rules if holds(rule, request)), None)
    if rule is None:
        return list(candidates)
    found = [one for name in rule.to for one in candidates if one.name == name or name in one.tags]
    return list({one.name: one for one in found}.values())


def holds(rule: RuleConfig, request: ModelRequest) -> bool:
    if rule.min_chars is not None and num_chars(request) < rule.min_chars:
        return False
    if rule.max_chars is not None and num_chars(request) > rule.max_chars:
        return False
    if rule.tools is not None and offers_tools(request) != rule.tools:
        return False
    if rule.images is not None and has_images(request) != rule.images:
        return False
    if rule.structured is not None and wants_structure(request) != rule.structured:
        return False
    if rule.tags and not rule.tags.items() <= request.journey.tags.items():
        return False
    if rule.script is not None and script(last_text(request)) != rule.script:
        return False
    return not rule.contains or has_word(last_text(request), rule.contains)


def has_word(text: str, words: Sequence[str]) -> bool:
    """As whole words, whatever their case; where a script has no spaces, anywhere."""

    def pattern(word: str) -> str:
        edges = [r"\b" if edge.isascii() and edge.isalnum() else "" for edge in (word[0], word[-1])]
        return edges[0] + re.escape(word) + edges[1]

    return re.search("|".join(pattern(word) for word in words if word), text, re.IGNORECASE) is not None


def script(text: str) -> str | None:
    """The script of most letters, as a rule calls it; Japanese is known by its kana. None without letters."""
    counts = Counter(_SCRIPTS.get(_first_word(char), "") for char in text[:LOOKED_AT] if char.isalpha())
    counts.pop("", None)
    if not counts:
        return None
    if 10 * counts["kana"] >= counts.total():
        return "kana"
    return counts.most_common(1)[0][0]


def _first_word(char: str) -> str:
    return "LATIN" if char.isascii() else unicodedata.name(char, "").partition(" ")[0]


_SCRIPTS = {
    "LATIN": "latin",
    "CJK": "han",
    "HIRAGANA": "kana",
    "KATAKANA": "kana",
    "HANGUL": "hangul",
    "CYRILLIC": "cyrillic",
    "ARABIC": "arabic",
    "HEBREW": "hebrew",
    "GREEK": "greek",
    "DEVANAGARI": "devanagari",
    "THAI": "thai",
}
