"""Token stores: what is written comes back, damage is found and named, a stopped writer goes on."""

from __future__ import annotations

import pickle
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import random_documents, write_store

from wootz.core.errors import ConfigError, ModelFileError, NotFoundError
from wootz.data.token_store import TokenStore, TokenStoreWriter


@pytest.mark.parametrize("vocab_size", [256, 65_536, 65_537])
def test_documents_come_back_whatever_the_width(tmp_path: Path, vocab_size: int) -> None:
    documents = [*random_documents(60, vocab_size=vocab_size), [vocab_size - 1]]
    store = write_store(tmp_path, documents, vocab_size=vocab_size)
    assert [store.document(number).tolist() for number in range(store.num_documents)] == documents
    assert store.num_tokens == sum(map(len, documents))
    assert len(store.index.shards) > 5
    bytes_per_token = (tmp_path / "00000.tokens").stat().st_size / store.index.shards[0].num_tokens
    assert bytes_per_token == (2 if vocab_size <= 65_536 else 4)
    again = pickle.loads(pickle.dumps(store))
    assert again.document(59).tolist() == documents[59]
    with pytest.raises(IndexError):
        store.document(61)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    per_shard=st.integers(1, 20),
    start=st.integers(0, 200),
    length=st.integers(1, 40),
)
def test_spans_go_over_shards_and_around_the_end(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], per_shard: int, start: int, length: int
) -> None:
    tokens = iter(range(1000))
    documents = [[next(tokens) for _ in range(n)] for n in lengths]
    store = write_store(tmp_path_factory.mktemp("store"), documents, vocab_size=1000, tokens_per_shard=per_shard)
    flat = [token for document in documents for token in document]
    last = {document[-1] for document in documents}
    expected = [flat[(start + n) % len(flat)] for n in range(length)]
    assert store.span(start, length).tolist() == expected
    assert store.ends_within(start, length) == [n + 1 for n, token in enumerate(expected) if token in last]


@pytest.mark.parametrize("file", ["00002.tokens", "00001.ends"])
def test_damage_is_found_and_named(tmp_path: Path, file: str) -> None:
    write_store(tmp_path, random_documents(40))
    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    TokenStore.open(tmp_path)
    with pytest.raises(ModelFileError, match=f"{file}: is damaged, its sha256"):
        TokenStore.open(tmp_path, verify=True)
    (tmp_path / file).write_bytes(whole[:-1])
    with pytest.raises(ModelFileError, match=f"{file}: is damaged, it has"):
        TokenStore.open(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(ModelFileError, match=file):
        TokenStore.open(tmp_path)


def test_a_stopped_writer_goes_on_and_the_store_is_the_same(tmp_path: Path) -> None:
    documents = random_documents(50)
    straight = write_store(tmp_path / "straight", documents)
    folder = tmp_path / "stopped"
    for stop in (13, 14, 37):
        with suppress(KeyboardInterrupt), TokenStoreWriter(folder, vocab_size=256, tokens_per_shard=50) as writer:
            for number in range(writer.num_documents, stop):
                writer.add(documents[number])
            raise KeyboardInterrupt
        with pytest.raises(ConfigError, match="not written to its end"):
            TokenStore.open(folder)
    (folder / ".00099.tokens.abc.partial").write_bytes(b"what a kill leaves behind")
    with TokenStoreWriter(folder, vocab_size=256, tokens_per_shard=50) as writer:
        assert 0 < writer.num_documents < 37
        for document in documents[writer.num_documents :]:
            writer.add(document)
    assert TokenStore.open(folder, verify=True).index == straight.index


def test_wrong_use_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="is not a token store"):
        TokenStore.open(tmp_path)
    store = write_store(tmp_path / "a", [[1, 2]])
    writer = TokenStoreWriter(store.folder, vocab_size=256)
    for tokens in ([256], [-1], []):
        with pytest.raises(ConfigError):
            writer.add(tokens)
    with pytest.raises(ConfigError, match="another tokenizer"):
        TokenStoreWriter(store.folder, vocab_size=256, tokenizer={"vocabulary": "f00"})
    (store.folder / "index.json").write_text("{")
    with pytest.raises(ModelFileError, match="is damaged"):
        TokenStore.open(store.folder)
