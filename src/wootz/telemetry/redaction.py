"""Black out what must not lie around in a stored text: keys, tokens, e-mail addresses, card numbers.

By pattern, so it finds what looks like a secret and misses what doesn't; it makes a store of texts less harmful, not
harmless. Every pattern's repeats are bounded or possessive by construction, because the texts are anybody's.
"""

from __future__ import annotations

import re
from typing import Any

_CAPS = "[A-Z ]{0,30}"
_SECRET = r"(?:password|passwd|secret|api[_-]?key|access[_-]?token)"
_PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(pattern, flags | re.ASCII))
    for name, pattern, flags in (
        ("private key", rf"-----BEGIN {_CAPS}PRIVATE KEY-----(?:[^-]|-(?!-)){{0,20000}}(?:-----END {_CAPS}-----)?", 0),
        ("token", r"\beyJ[\w-]{8,4096}\.[\w-]{4,4096}\.[\w-]{0,4096}", 0),
        ("bearer token", r"\b(?:bearer|basic)\s{1,4}[\w.~+/=-]{8,4096}", re.IGNORECASE),
        ("api key", r"\b(?:sk|pk|rk)[-_][\w-]{12,512}", 0),
        ("api key", r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b", 0),
        ("api key", r"\bLTAI[0-9A-Za-z]{12,30}\b", 0),
        ("api key", r"\bAIza[\w-]{35}", 0),
        ("api key", r"\b(?:gh[pousr]_|github_pat_|glpat-|hf_|xox[abprs]-|npm_|pypi-)[\w-]{16,512}", 0),
        ("secret", rf"(?<=[\"'\s_-]){_SECRET}[\"']?\s{{0,4}}[:=]\s{{0,4}}[\"']?[^\s\"',;&]{{6,512}}", re.IGNORECASE),
        ("secret", r"(?<=://)[^\s/@:]{1,128}:[^\s/@]{1,256}(?=@)", 0),
        ("e-mail", r"\b[\w.%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,6}", 0),
    )
)  # fmt: skip
_DIGITS = re.compile(r"(?<![\d.])\d(?:[ -]?\d){12,60}(?![\d.])", re.ASCII)
_GROUP = re.compile(r"\d+", re.ASCII)
SLACK = 4096
"""Looked at beyond a cut, so that a secret that the cut goes through is still seen whole."""

_DATA_URL = re.compile(r"data:([\w/+.-]{1,100});base64,")


def redact(text: str) -> str:
    """The text with each find replaced by what it was, in brackets."""
    for name, pattern in _PATTERNS:
        text = pattern.sub(f"[{name}]", text)
    return _DIGITS.sub(_cards, text)


def redact_json(value: Any, max_chars: int) -> Any:
    """The same for every string in a JSON value, keys too. Long strings are cut; images become a note of their size."""
    if isinstance(value, str):
        if match := _DATA_URL.match(value):
            return f"[{match[1]}, {len(value) * 3 // 4:,} bytes]"
        cut = value[: max_chars + SLACK]
        text = redact(cut)[:max_chars]
        return text if len(value) <= max_chars else f"{text}… [cut, {len(value):,} characters]"
    if isinstance(value, dict):
        return {redact(str(name)[:200]): redact_json(part, max_chars) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [redact_json(part, max_chars) for part in value]
    return value


def _cards(match: re.Match[str]) -> str:
    """Of groups of digits in a row, those that together are a card's number, by its length and check digit (Luhn).

    Order numbers and timestamps mostly are not.
    """
    text, groups = match[0], list(_GROUP.finditer(match[0]))
    for first, group in enumerate(groups):
        digits = ""
        for last in groups[first:]:
            digits += last[0]
            if len(digits) > 19:
                break
            if len(digits) >= 13 and _passes_luhn(digits):
                return f"{text[: group.start()]}[card number]{_DIGITS.sub(_cards, text[last.end() :])}"
    return text


def _passes_luhn(digits: str) -> bool:
    total = 0
    for place, digit in enumerate(map(int, reversed(digits))):
        total += digit if place % 2 == 0 else 2 * digit - 9 * (digit > 4)
    return total > 0 and total % 10 == 0
