"""JSON while it is written: values cut exactly where they end, and calls that are one JSON object."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from wootz.tokenization.tool_formats.cursor import Arguments, Broken, CallEnd, CallStart, Cursor, Steps

_NO_CALL = object()


def json_value(cursor: Cursor, sink: Callable[[str], None] | None = None) -> Steps[str]:
    """Take one JSON value and return its text; ``sink`` gets it piece by piece. Raises `Broken` if it is none."""
    depth, in_string, escaped, parts = 0, False, False, []
    over = False
    while not over:
        if not (yield from cursor.some()):
            break
        count = 0
        for character in cursor.held:
            if in_string:
                in_string = escaped or character != '"'
                escaped = character == "\\" and not escaped
                over = not in_string and depth == 0
            elif character == '"':
                in_string = True
            elif character in "{[":
                depth += 1
            elif character in "}]":
                depth -= 1
                over = depth <= 0
                if depth < 0:  # the end of what this value is in
                    break
            elif depth == 0 and (character in ",:" or character.isspace()) and (parts or count):
                over = True
                break
            count += 1
            if over:
                break
        piece = cursor.take(count)
        parts.append(piece)
        if sink and piece:
            sink(piece)
    text = "".join(parts)
    read_json(text)
    return text


def read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise Broken("not JSON") from None


def arguments(cursor: Cursor) -> Steps[None]:
    """The JSON object of a call's arguments, given out as it comes."""
    if not (yield from cursor.some()) or cursor.held[0] != "{":
        raise Broken("arguments are an object")
    yield from json_value(cursor, lambda piece: cursor.emit(Arguments(piece)))


def json_call(cursor: Cursor) -> Steps[None]:
    """``{"name": …, "arguments": {…}}``, also with "parameters", an "id", and the arguments as JSON in a string."""
    fields: dict[str, Any] = {}
    started = False
    yield from cursor.literal("{")
    while True:
        yield from cursor.space()
        key = read_json((yield from json_value(cursor)))
        yield from cursor.space()
        yield from cursor.literal(":")
        yield from cursor.space()
        yield from cursor.some()
        is_arguments = key in ("arguments", "parameters")
        if is_arguments and isinstance(fields.get("name"), str) and cursor.held[:1] == "{":
            cursor.emit(CallStart(fields["name"], _id(fields)))
            started = True
            yield from arguments(cursor)
        else:
            fields["arguments" if is_arguments else key] = read_json((yield from json_value(cursor)))
        yield from cursor.space()
        if (yield from cursor.literal(",", "}")) == "}":
            break
    if not started:
        name, given = fields.get("name"), fields.get("arguments", _NO_CALL)
        if isinstance(given, str):  # some write the object as a string in the string, as OpenAI's wire does
            given = read_json(given)
        if not isinstance(name, str) or not isinstance(given, dict):
            raise Broken("not a call")
        cursor.emit(CallStart(name, _id(fields)))
        cursor.emit(Arguments(json.dumps(given, ensure_ascii=False)))
    cursor.emit(CallEnd(_id(fields)))


def _id(fields: dict[str, Any]) -> str | None:
    return fields["id"] if isinstance(fields.get("id"), str) else None
