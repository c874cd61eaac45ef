"""The small automaton, Python's `re`, the naive mask and llguidance agree, token by token."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import llguidance
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wootz.engine.reference_grammar import Automaton, Node, TokenIndex, naive_mask, parse_regex, schema_regex

PATTERNS = [
    r"a*b", r"(ab|a)(c|bcd)?", r"[a-c]{2,3}x+", r"\d{1,3}(\.\d+)?", r"(a|b)*abb", r"[^a]b?.", r"\w+@\w+",
    r"(x|y|)z{0,2}",
]  # fmt: skip
SCHEMAS: list[dict[str, Any]] = [
    {"type": "object",
     "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}, "c": {"enum": ["x", 1, None]}},
     "required": ["b"], "additionalProperties": False},
    {"type": "array", "items": {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 2}]}, "maxItems": 2},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 1},
    {"type": "object", "properties": {"k": {"type": "object", "properties": {"n": {"const": "x\""}}, "required": ["n"],
     "additionalProperties": False}}, "additionalProperties": False},
]  # fmt: skip
END = 0
TOKENS = [b"<end>", *(bytes([b]) for b in range(32, 127)), b"ab", b"abb", b'":', b'{"', b"true", b",", b'",', b"12",
          b"b:t", b"ull", b"\\u", b"00", b'"}', b"}}", b"xx", b"@a", b'["', b"]]"]  # fmt: skip


class _Vocabulary:
    is_tokenizer_wrapper, bos_token_id, eos_token_id, special_token_ids = True, None, END, (END,)
    tokens = TOKENS

    def __call__(self, text):
        data = text if isinstance(text, bytes) else text.encode()
        return [TOKENS.index(bytes([byte])) for byte in data]


VOCABULARY = llguidance.LLTokenizer(_Vocabulary(), n_vocab=len(TOKENS), eos_token=[END])


@settings(max_examples=300, deadline=None)
@given(pattern=st.sampled_from(PATTERNS), text=st.text("abcdxyz01.@_ ", max_size=7))
def test_the_automaton_matches_what_python_matches(pattern: str, text: str) -> None:
    automaton = Automaton(parse_regex(pattern))
    state = automaton.walk(0, text.encode())
    assert (state is not None and automaton.accepting[state]) == bool(re.fullmatch(pattern, text, re.ASCII))


def walk(expression: Node, grammar: str, seed: int) -> None:
    """A random way through the grammar; at each step all three masks are the same."""
    rng = random.Random(seed)
    index = TokenIndex(expression, TOKENS, END)
    matcher = llguidance.LLMatcher(VOCABULARY, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    state, written = 0, b""
    for _ in range(25):
        allowed = index.mask(state)
        assert allowed == naive_mask(expression, written, [b"", *TOKENS[1:]], END)
        bits = matcher.compute_bitmask()
        assert allowed == {id for id in range(len(TOKENS)) if bits[id // 8] >> (id % 8) & 1}, written
        token = rng.choice(sorted(allowed))
        if token == END:
            return
        assert matcher.consume_token(token)
        state, written = index.next_state[state][token], written + TOKENS[token]
        if matcher.is_stopped():
            assert index.mask(state) == {END}
            return


@pytest.mark.parametrize("pattern", PATTERNS)
def test_regex_masks_are_llguidances(pattern: str) -> None:
    printable = pattern.replace(".", "[\\x00-\\x09\\x0b-\\x7f]") if pattern.endswith(".") else pattern
    ascii_only = (
        printable.replace("[^a]", "[\\x00-\\x60\\x62-\\x7f]").replace("\\w", "[0-9A-Za-z_]").replace("\\d", "[0-9]")
    )
    for seed in range(4):
        walk(parse_regex(pattern), llguidance.LLMatcher.grammar_from_regex(ascii_only), seed)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_schema_masks_are_llguidances(schema: dict[str, Any]) -> None:
    """Where strings are of our small alphabet: elsewhere llguidance knows escapes, too."""
    strings = "maxLength" in json.dumps(schema)
    options = {"x-guidance": {"whitespace_flexible": False}}
    # By itself llguidance allows, of text that is certain, only the tokens that the tokenizer would make of it.
    grammar = f'%llguidance {{"no_forcing": true}}\nstart: %json {json.dumps(schema | options)}'
    for seed in range(4):
        if strings:
            index = TokenIndex(schema_regex(schema), TOKENS, END)
            matcher = llguidance.LLMatcher(VOCABULARY, grammar, log_level=0)
            bits = matcher.compute_bitmask()
            assert index.mask(0) <= {id for id in range(len(TOKENS)) if bits[id // 8] >> (id % 8) & 1}
        else:
            walk(schema_regex(schema), grammar, seed)
