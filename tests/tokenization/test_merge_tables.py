"""Documents of two kinds, each by the merges of its own kind: fewer tokens, one meaning of every id."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wootz.core import BadRequestError
from wootz.tokenization.merge_tables import MergeTables, train_tables
from wootz.tokenization.train import train_tokenizer


@pytest.fixture(scope="module")
def kinds(texts: list[str]) -> dict[str, list[str]]:
    code = [text for text in texts if "def " in text and "return" in text]
    languages = [text for text in texts[: len(texts) // 3] if "def " not in text]
    return {"code": code[:40], "languages": languages[:80]}


@pytest.fixture(scope="module")
def tables(kinds: dict[str, list[str]]) -> MergeTables:
    training = {name: own[: len(own) // 2] for name, own in kinds.items()}
    return train_tables(training, 1500, patterns={"code": "code"})


def test_each_document_gets_its_own_kinds_table(tables: MergeTables, kinds: dict[str, list[str]]) -> None:
    for name, own in kinds.items():
        unseen = own[len(own) // 2 :]
        found = [tables.encode(text) for text in unseen]
        assert [document.table for document in found].count(name) >= 0.9 * len(found)
        for text, document in zip(unseen, found, strict=True):
            assert len(document.ids) == min(len(tables.encode(text, kind).ids) for kind in kinds)
            assert tables.decode(document.ids) == text
    assert tables.vocab_size < 2 * 1500 - 256  # bytes and what both have are there once


def test_a_table_encodes_as_its_own_tokenizer(tables: MergeTables, kinds: dict[str, list[str]]) -> None:
    code = kinds["code"]
    alone = train_tokenizer(code[: len(code) // 2], vocab_size=1500, pattern="code", special_tokens=())
    for text in code[len(code) // 2 :]:
        theirs = [alone.decode([id]) for id in alone.encode(text).ids]
        assert [tables.decode([id]) for id in tables.encode(text, "code").ids] == theirs


@settings(deadline=None, max_examples=40)
@given(text=st.text(st.characters(codec="utf-8")))
def test_any_text_comes_back_from_any_table(tables: MergeTables, text: str) -> None:
    for table in (None, "code", "languages"):
        assert tables.decode(tables.encode(text, table).ids) == text


def test_no_tables_are_refused() -> None:
    with pytest.raises(BadRequestError, match="no tables"):
        MergeTables({}, {})
