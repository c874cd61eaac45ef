"""A known value in every guise that systems put it in: encoded, escaped, hashed, cut short.

A log that has ``Authorization: Basic …`` or a URL with the key in its query holds the key as surely as one that prints
it, and a hash or the first characters identify it. Base64 of a longer text has the value's own base64 at one of three
alignments, of which only the characters that the value alone decides are looked for.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import quote, quote_plus

PREFIX_CHARS = 8
PUBLIC_PREFIX = re.compile(
    r"(?:sk-(?:ant-(?:api\d\d-)?|proj-|or-v1-|wootz-)?|[srp]k_(?:live|test)_|gh[pousr]_|github_pat_|glpat-|xox[abprs]-"
    r"|hf_|npm_|pypi-|hvs\.|AIza|AKIA|ASIA|LTAI|SG\.|eyJ[\w-]*\.|-----BEGIN[A-Z ]*-----|\w+://)?"
)
"""What the keys of one kind have in common, which gives none away."""


@dataclass(frozen=True)
class Known:
    """A secret to be looked for; ``name`` is what a finding calls it."""

    name: str
    value: str = field(repr=False)

    def guises(self) -> dict[str, str]:
        """How it may look, and what that is called; the plainest last, so that it has the last word."""
        raw = self.value.encode()
        found = {text: f"in base64 ({name})" for name, text in _base64(raw)}
        found |= {raw.hex(): "in hex", raw.hex().upper(): "in hex"}
        digest = hashlib.sha256(raw)
        found |= {digest.hexdigest(): "as its SHA-256", base64.b64encode(digest.digest()).decode(): "as its SHA-256"}
        found |= {quote(self.value, safe=""): "URL-encoded", quote_plus(self.value): "URL-encoded"}
        found |= {html.escape(self.value): "HTML-escaped"}
        found |= {
            json.dumps(self.value)[1:-1]: "JSON-escaped",
            json.dumps(self.value, ensure_ascii=False)[1:-1]: "JSON-escaped",
        }
        found[self.value] = "in the clear"
        return found

    @property
    def head(self) -> str:
        """Its first characters that are its own; empty when they are most of it."""
        match = PUBLIC_PREFIX.match(self.value)
        end = (match.end() if match else 0) + PREFIX_CHARS
        return self.value[:end] if end + 4 <= len(self.value) else ""


class Search:
    """For known values in texts. Values shorter than 8 characters are in every text, and not looked for."""

    def __init__(self, known: list[Known]) -> None:
        self._guises: dict[str, tuple[str, str]] = {}
        self._heads: list[Known] = []
        for one in known:
            if len(one.value) >= PREFIX_CHARS:
                self._guises |= {text: (one.name, how) for text, how in one.guises().items()}
                self._heads += [one] if one.head else []

    def find(self, text: str) -> Iterator[tuple[int, int, str]]:
        """Begin, end, and what it is."""
        whole: set[int] = set()
        for guise, (name, how) in self._guises.items():
            for start in _places(text, guise):
                whole.add(start)
                yield start, start + len(guise), f'"{name}" {how}'
        for one in self._heads:
            for start in _places(text, one.head):
                if start not in whole:
                    length = _common(one.value, text, start)
                    yield start, start + length, f'"{one.name}", its first {length} characters'


def _base64(raw: bytes) -> Iterator[tuple[str, str]]:
    for offset, skipped in ((0, 0), (1, 2), (2, 3)):
        padded = b"\0" * offset + raw
        for name, encode in (("standard", base64.b64encode), ("URL-safe", base64.urlsafe_b64encode)):
            text = encode(padded).decode()[skipped : len(padded) * 8 // 6]
            if len(text) >= PREFIX_CHARS:
                yield name, text


def _places(text: str, wanted: str) -> Iterator[int]:
    start = text.find(wanted)
    while start >= 0:
        yield start
        start = text.find(wanted, start + len(wanted))


def _common(value: str, text: str, start: int) -> int:
    length = 0
    while length < len(value) and text[start + length : start + length + 1] == value[length]:
        length += 1
    return length
