"""Constrained decoding in little: a regex becomes an automaton, and each of its states an index of tokens.

To read, and for tests, which compare it with llguidance's masks token by token. Three ways to the same mask:

- `naive_mask` asks of every token whether the text with it is still the beginning of a match: O(vocabulary) each step.
- `TokenIndex` walks each token through the automaton once, for every state; a step is then a look into a table
  (Outlines; Willard and Louf, arXiv 2307.09702).
- `schema_regex` makes a JSON Schema without recursion a regex, so the same index enforces it. What nests without bound
  needs a stack, which is what llguidance's parser adds (`wootz.engine.grammar`).

The automaton is built by Brzozowski's derivatives (Journal of the ACM 11, 1964): the derivative of an expression by a
byte is what has to follow that byte. Expressions are nested tuples in a normal form, so that equal ones are one state
and there are finitely many.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

NOTHING: Node = ("nothing",)
"""Matches no text at all."""
EMPTY: Node = ("empty",)
"""Matches the empty text."""

Node = tuple[Any, ...]
"""``("bytes", frozenset)``, ``("then", a, b)``, ``("or", frozenset)``, ``("star", a)``, and the two above."""


# --- expressions ----------------------------------------------------------------------------------------------


def then(first: Node, second: Node) -> Node:
    if NOTHING in (first, second):
        return NOTHING
    if first == EMPTY:
        return second
    if first[0] == "then":  # to the right, so that equal ones look equal
        return ("then", first[1], then(first[2], second))
    return first if second == EMPTY else ("then", first, second)


def either(*nodes: Node) -> Node:
    parts: set[Node] = set()
    for node in nodes:
        parts |= node[1] if node[0] == "or" else {node}
    parts.discard(NOTHING)
    return next(iter(parts)) if len(parts) == 1 else ("or", frozenset(parts)) if parts else NOTHING


def star(node: Node) -> Node:
    return EMPTY if node in (NOTHING, EMPTY) else node if node[0] == "star" else ("star", node)


def repeat(node: Node, low: int, high: int | None) -> Node:
    """From ``low`` to ``high`` times; None is without end."""
    tail = star(node) if high is None else EMPTY
    for _ in range((high or low) - low):
        tail = either(EMPTY, then(node, tail))
    for _ in range(low):
        tail = then(node, tail)
    return tail


def text(literal: str) -> Node:
    node = EMPTY
    for byte in reversed(literal.encode()):
        node = then(("bytes", frozenset([byte])), node)
    return node


def accepts_empty(node: Node) -> bool:
    match node[0]:
        case "empty" | "star":
            return True
        case "then":
            return accepts_empty(node[1]) and accepts_empty(node[2])
        case "or":
            return any(map(accepts_empty, node[1]))
    return False


def derivative(node: Node, byte: int) -> Node:
    """What has to follow ``byte``."""
    match node[0]:
        case "bytes":
            return EMPTY if byte in node[1] else NOTHING
        case "then":
            after = then(derivative(node[1], byte), node[2])
            return either(after, derivative(node[2], byte)) if accepts_empty(node[1]) else after
        case "or":
            return either(*(derivative(one, byte) for one in node[1]))
        case "star":
            return then(derivative(node[1], byte), node)
    return NOTHING


# --- a small regex syntax -------------------------------------------------------------------------------------

_CLASSES = {"d": frozenset(b"0123456789"), "w": frozenset(c for c in range(128) if chr(c).isalnum() or c == 95)}


def parse_regex(pattern: str) -> Node:
    """ASCII only: literals, ``.``, ``[a-z]``, ``[^…]``, ``\\d``, ``\\w``, ``( | )``, ``* + ?`` and ``{m,n}``."""
    node, at = _alternatives(pattern, 0)
    if at != len(pattern):
        raise ValueError(f"unexpected {pattern[at]!r}")
    return node


def _alternatives(pattern: str, at: int) -> tuple[Node, int]:
    ways, node = [], EMPTY
    while at < len(pattern) and pattern[at] != ")":
        if pattern[at] == "|":
            ways.append(node)
            node, at = EMPTY, at + 1
            continue
        one, at = _repeated(*_atom(pattern, at), pattern)
        node = then(node, one)
    return either(*ways, node), at


def _atom(pattern: str, at: int) -> tuple[Node, int]:
    match pattern[at]:
        case "(":
            node, at = _alternatives(pattern, at + 1)
            return node, at + 1
        case "[":
            end = pattern.index("]", at + 2)
            inside = pattern[at + 1 : end].removeprefix("^")
            chosen: set[int] = set()
            place = 0
            while place < len(inside):
                if inside[place + 1 : place + 2] == "-" and place + 2 < len(inside):
                    chosen |= set(range(ord(inside[place]), ord(inside[place + 2]) + 1))
                    place += 3
                else:
                    chosen.add(ord(inside[place]))
                    place += 1
            return ("bytes", frozenset(set(range(128)) - chosen if pattern[at + 1] == "^" else chosen)), end + 1
        case ".":
            return ("bytes", frozenset(set(range(128)) - {10})), at + 1
        case "\\":
            letter = pattern[at + 1]
            return ("bytes", _CLASSES.get(letter, frozenset([ord(letter)]))), at + 2
    return text(pattern[at]), at + 1


def _repeated(node: Node, at: int, pattern: str) -> tuple[Node, int]:
    match pattern[at : at + 1]:
        case "*":
            return star(node), at + 1
        case "+":
            return repeat(node, 1, None), at + 1
        case "?":
            return repeat(node, 0, 1), at + 1
        case "{":
            end = pattern.index("}", at)
            low, comma, high = pattern[at + 1 : end].partition(",")
            return repeat(node, int(low), (int(high) if high else None) if comma else int(low)), end + 1
    return node, at


# --- automaton and index --------------------------------------------------------------------------------------


class Automaton:
    """States are numbers; `start` is 0. States from which nothing can be matched any more don't exist."""

    def __init__(self, expression: Node) -> None:
        self._number: dict[Node, int] = {expression: 0}
        self.transitions: list[dict[int, int]] = []
        nodes = [expression]
        while len(self.transitions) < len(nodes):
            node = nodes[len(self.transitions)]
            steps: dict[int, int] = {}
            for byte in range(256):
                following = derivative(node, byte)
                if following != NOTHING:
                    if following not in self._number:
                        self._number[following] = len(nodes)
                        nodes.append(following)
                    steps[byte] = self._number[following]
            self.transitions.append(steps)
        self.accepting = [accepts_empty(node) for node in nodes]

    def walk(self, state: int | None, data: bytes) -> int | None:
        for byte in data:
            state = None if state is None else self.transitions[state].get(byte)
        return state


class TokenIndex:
    """For every state the tokens that it allows, and the state each leads to; found out once."""

    def __init__(self, expression: Node, tokens: Sequence[bytes], end_token: int) -> None:
        self.automaton, self.end_token = Automaton(expression), end_token
        self.next_state: list[dict[int, int]] = [
            {id: to for id, data in enumerate(tokens) if data and (to := self.automaton.walk(state, data)) is not None}
            for state in range(len(self.automaton.transitions))
        ]

    def mask(self, state: int) -> set[int]:
        """The tokens allowed in ``state``; the end token only where all is said."""
        return {*self.next_state[state], *([self.end_token] if self.automaton.accepting[state] else [])}


def naive_mask(expression: Node, written: bytes, tokens: Sequence[bytes], end_token: int) -> set[int]:
    """The same by trying every token, from the beginning of the text."""
    for byte in written:
        expression = derivative(expression, byte)
    allowed = {end_token} if accepts_empty(expression) else set()
    for id, data in enumerate(tokens):
        left = expression
        for byte in data:
            left = derivative(left, byte)
        if data and left != NOTHING:
            allowed.add(id)
    return allowed


# --- JSON Schema ----------------------------------------------------------------------------------------------

_CHARACTER = ("bytes", frozenset(range(32, 127)) - frozenset(b'"\\'))


def schema_regex(schema: Mapping[str, Any]) -> Node:
    """Compact JSON that the schema allows: objects in the order of their properties, arrays, strings of ASCII with
    lengths, integers, truth values, enum, const and anyOf."""
    if "const" in schema or "enum" in schema:
        return either(*(text(_compact(value)) for value in schema.get("enum") or [schema["const"]]))
    if "anyOf" in schema:
        return either(*map(schema_regex, schema["anyOf"]))
    match schema.get("type"):
        case "object":
            return then(text("{"), then(_properties(schema), text("}")))
        case "array":
            item, low, high = schema_regex(schema["items"]), schema.get("minItems", 0), schema.get("maxItems")
            more = repeat(then(text(","), item), max(low - 1, 0), None if high is None else max(high - 1, 0))
            inside = EMPTY if high == 0 else then(item, more)
            return then(text("["), then(inside if low else either(EMPTY, inside), text("]")))
        case "string":
            body = repeat(_CHARACTER, schema.get("minLength", 0), schema.get("maxLength"))
            return then(text('"'), then(body, text('"')))
        case "integer":
            return parse_regex("-?(0|[1-9][0-9]*)")
        case "boolean":
            return parse_regex("true|false")
        case "null":
            return text("null")
    raise ValueError(f"not in this small dialect: {schema}")


def _properties(schema: Mapping[str, Any]) -> Node:
    """Some may be left out: what follows depends on whether anything stands before, for the comma."""
    first = more = EMPTY
    for name, part in reversed((schema.get("properties") or {}).items()):
        pair = then(text(f"{_compact(name)}:"), schema_regex(part))
        required = name in schema.get("required", ())
        first, more = (
            then(pair, more) if required else either(then(pair, more), first),
            then(text(","), then(pair, more)) if required else either(then(text(","), then(pair, more)), more),
        )
    return first


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
