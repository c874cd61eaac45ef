"""Shortening keeps what tokens mean."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wootz.core import BadRequestError
from wootz.tokenization import Tokenizer
from wootz.tokenization.built_in_templates import built_in_template
from wootz.tokenization.truncation import truncate_chat, truncate_ids, truncate_text

from .test_built_in_templates import ROLES, TOOL_TURNS, tokenizer

IT = tokenizer(None)
sides = st.sampled_from(["left", "right", "middle"])
texts = st.text(st.sampled_from("aé世🤖 No\nr"), max_size=30)


@settings(deadline=None)
@given(text=texts, max_tokens=st.integers(2, 40), side=sides)
def test_whole_characters_and_both_ends_stay(text: str, max_tokens: int, side: Any) -> None:
    ids = [IT.bos_token_id or 0, *IT.encode(text, add_special_tokens=False), 263]
    cut = truncate_ids(IT, ids, max_tokens, side=side)
    assert len(cut) <= max_tokens
    assert (cut[0], cut[-1]) == (262, 263)
    left = IT.decode(cut)
    assert "\ufffd" not in left
    assert {"left": text.endswith, "right": text.startswith}.get(side, lambda _: True)(left)
    if len(ids) <= max_tokens:
        assert cut == ids
    else:  # and nothing goes without need: one character is at most four tokens at each side of a cut
        assert len(cut) >= max_tokens - 6
    if side == "middle":
        assert any(text.startswith(left[:n]) and text.endswith(left[n:]) for n in range(len(left) + 1))


def test_special_tokens_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(BadRequestError, match="2 special tokens"):
        truncate_ids(IT, [262, 97, 263], 1)


@settings(deadline=None)
@given(text=texts, max_tokens=st.integers(0, 40), side=sides)
def test_a_text_fits_when_it_is_encoded_again(text: str, max_tokens: int, side: Any) -> None:
    cut = truncate_text(IT, text, max_tokens, side=side)
    assert len(IT.encode(cut, add_special_tokens=False)) <= max_tokens


@pytest.mark.parametrize("name", ["qwen", "llama3", "mistral"])
@settings(deadline=None, max_examples=25)
@given(max_tokens=st.integers(20, 200), side=sides)
def test_a_conversation_keeps_its_frame(name: str, max_tokens: int, side: Any) -> None:
    it = tokenizer(built_in_template(name, special_tokens=ROLES))
    turns = [*TOOL_TURNS[:-1], {"role": "user", "content": "世界 " * 30}]
    try:
        kept = truncate_chat(it, turns, max_tokens, side=side)
    except BadRequestError:
        assert len(it.encode_chat([{"role": "system", "content": ""}, {"role": "user", "content": ""}])) > max_tokens
        return
    ids = it.encode_chat(kept)
    assert len(ids) <= max_tokens
    assert kept[0]["role"] == "system"
    assert [m["role"] for m in kept[1:]] in ([m["role"] for m in turns[1:]], ["user"])
    assert control(it, ids) == control(it, it.encode_chat([*kept[:-1], {"role": "user", "content": "x"}]))


def test_old_exchanges_go_before_words_do() -> None:
    it = tokenizer(built_in_template("qwen"))
    turns = [m for n in range(9) for m in ({"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"})]
    turns.append({"role": "user", "content": "last"})
    kept = truncate_chat(it, turns, len(it.encode_chat(turns)) - 1)
    assert kept == turns[2:]


def control(it: Tokenizer, ids: list[int]) -> list[int]:
    return [id for id in ids if id in it.control_ids]
