"""JSON out of what a model wrote when nothing but a prompt asked it to: the free-form path, which promises nothing.

In order: the text itself; what stands in a fence; the objects and arrays in it, outermost brackets first. Each is read
as it is, and once more with what models get wrong put right (trailing commas, Python's words and quotes, comments, a
bracket that is missing at the end). Braces in prose are tried and passed over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from wootz.core import BadRequestError

_FENCE = re.compile(r"```[a-zA-Z]*\s*\n?(.*?)(?:```|\Z)", re.DOTALL)
_WORDS = {"True": "true", "False": "false", "None": "null"}
_CLOSING = {"{": "}", "[": "]"}


class NoJSONError(BadRequestError):
    """There is none. The message has the first 200 characters, for whoever retries."""

    code = "no_json"


def parse_json(text: str) -> Any:
    """The first JSON value in ``text``. Raises `NoJSONError`."""
    return next(_values(text), None) or _none_in(text)


def parse_all_json(text: str) -> list[Any]:
    """Every object and array that stands by itself in ``text``, in order; maybe none."""
    return [*_brackets(text)]


def _none_in(text: str) -> Any:
    try:
        return json.loads(text)  # an empty object, zero, false and null are values too
    except ValueError:
        raise NoJSONError(f"there is no JSON in the answer, which begins {text[:200]!r}") from None


def _values(text: str) -> Iterator[Any]:
    for candidate in (text, *(match[1] for match in _FENCE.finditer(text))):
        for attempt in (candidate, repair(candidate)):
            try:
                value = json.loads(attempt)
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict | list):
                yield value
    yield from _brackets(text)


def _brackets(text: str) -> Iterator[Any]:
    at = 0
    while match := re.compile(r"[{\[]").search(text, at):
        at = match.start()
        end = _end(text, at)
        piece = text[at:end]
        value = None
        for attempt in (piece, repair(piece)):
            try:
                value = json.loads(attempt)
                break
            except (ValueError, RecursionError):
                continue
        if isinstance(value, dict | list) and (value or end - at <= 4):
            yield value
            at = end
        else:
            at += 1


def _end(text: str, start: int) -> int:
    """Just after the bracket that closes the one at ``start``, or the end of the text."""
    depth, quote, at = 0, "", start
    while at < len(text):
        character = text[at]
        if quote:
            if character == "\\":
                at += 1
            elif character == quote:
                quote = ""
        elif character == '"' or (character == "'" and text[:at].rstrip()[-1:] in "{[,:"):
            quote = character
        elif character in "{[":
            depth += 1
        elif character in "}]":
            depth -= 1
            if depth == 0:
                return at + 1
        at += 1
    return len(text)


def repair(text: str) -> str:
    """``text`` with what models get wrong in JSON put right, as far as it is one value; strings are left alone."""
    out: list[str] = []
    open: list[str] = []
    at = 0
    text = text.strip()
    while at < len(text):
        character = text[at]
        if character in "\"'":
            string, at = _string(text, at)
            out.append(string)
            continue
        if character in "{[":
            open.append(_CLOSING[character])
        elif character in "}]":
            _drop_comma(out)
            if open and open[-1] == character:
                open.pop()
        elif text.startswith(("//", "#"), at):
            at = text.find("\n", at) if "\n" in text[at:] else len(text)
            continue
        elif character.isalpha():
            word = re.match(r"\w+", text[at:])
            assert word
            out.append(_WORDS.get(word[0], word[0]))
            at += len(word[0])
            continue
        out.append(character)
        at += 1
    if open:
        _drop_comma(out)
    return "".join(out) + "".join(reversed(open))


def _string(text: str, start: int) -> tuple[str, int]:
    """The string that begins at ``start``, in JSON's quotes, its raw line breaks escaped; and where it ends."""
    quote, parts, at = text[start], [], start + 1
    while at < len(text) and text[at] != quote:
        if text[at] == "\\" and at + 1 < len(text):
            escape = text[at : at + 2]
            parts.append("'" if escape == "\\'" else escape)
            at += 2
            continue
        parts.append({"\n": "\\n", "\t": "\\t", "\r": "\\r", '"': '\\"'}.get(text[at], text[at]))
        at += 1
    return f'"{"".join(parts)}"', at + 1


def _drop_comma(out: list[str]) -> None:
    while out and out[-1].isspace():
        out.pop()
    if out and out[-1] == ",":
        out.pop()
