"""Text encoded while it is read: the tokens of a store, each document once in an epoch, stopped and gone on with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wootz.core.errors import ConfigError
from wootz.data import build as building
from wootz.data.batch import IGNORED
from wootz.data.build import build
from wootz.data.recipe import recipe_of
from wootz.data.streaming import StreamedBatches, open_texts
from wootz.data.tokens import open_stores, tokenize, tokenizer_for

COUNTS = {"web": 53, "wiki": 11}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Of several files, with a trained tokenizer, as text and as stores."""
    folder = tmp_path_factory.mktemp("corpus")
    sources = []
    for source, count in COUNTS.items():
        lines = [" ".join(f"{source}{(n * k) % 13}" for k in range(n % 7 + 1)) + f" {n}" for n in range(count)]
        (folder / f"{source}.txt").write_text("\n".join(lines))
        sources.append({"name": source, "path": f"{source}.txt", "split": ""})
    recipe = recipe_of({"source": sources, "tokens": {"vocab_size": 280}}, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "batches_of", lambda documents: _by(documents, 10))
        build(recipe, folder / "out")
    assert recipe.tokens is not None
    tokenizer = tokenizer_for(folder / "out", recipe.tokens)
    tokenize(folder / "out", tokenizer)
    return folder / "out", tokenizer


def _by(documents: Any, count: int) -> Iterator[list[Any]]:
    every = list(documents)
    for start in range(0, len(every), count):
        yield every[start : start + count]


def batches(corpus: tuple[Path, Any], **how: Any) -> StreamedBatches:
    texts = open_texts(corpus[0] / "documents", corpus[1], how.get("seed", 0))
    return StreamedBatches(texts, {"web": 3.0, "wiki": 1.0}, **{"seq_len": 16, "batch_size": 4, "seed": 0, **how})


def test_an_epoch_is_every_document_once_in_another_order(corpus: tuple[Path, Any]) -> None:
    assert len(list((corpus[0] / "documents").glob("*.parquet"))) > 5
    for source, count in COUNTS.items():
        documents = open_texts(corpus[0] / "documents", corpus[1], 0)[source]
        epochs = [[documents.number(epoch * count + n) for n in range(count)] for epoch in range(3)]
        assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in [*epochs, list(range(count))]}) == 4


def test_rows_are_the_stores_documents_one_after_another(corpus: tuple[Path, Any]) -> None:
    stream, stores = batches(corpus), open_stores(corpus[0] / "tokens")
    texts = open_texts(corpus[0] / "documents", corpus[1], 0)
    expected, ends = dict[str, np.ndarray](), dict[str, np.ndarray]()
    for source, store in stores.items():
        documents = [store.document(texts[source].number(place)) for place in range(6 * COUNTS[source])]
        expected[source] = np.concatenate(documents).astype(np.int64)
        ends[source] = np.cumsum([len(document) for document in documents])
    taken = dict.fromkeys(COUNTS, 0)
    for batch in (next(stream) for _ in range(30)):
        for row in range(4):
            tokens = batch.tokens_BT[row].numpy()
            source = next(s for s in COUNTS if np.array_equal(expected[s][taken[s] : taken[s] + 16], tokens))
            start = taken[source]
            labels = expected[source][start + 1 : start + 17].copy()
            own = ends[source][(ends[source] > start) & (ends[source] <= start + 16)] - start
            labels[own - 1] = IGNORED
            assert batch.labels_BT[row].tolist() == labels.tolist()
            assert batch.documents is not None
            assert np.cumsum(batch.documents[row]).tolist() == sorted({*own.tolist(), 16})
            taken[source] += 16
    assert taken == {"web": 90 * 16, "wiki": 30 * 16}


def test_a_stopped_stream_goes_on_with_any_number_of_ranks(corpus: tuple[Path, Any]) -> None:
    whole = batches(corpus)
    for number in range(12):
        states = whole.state_dict()
        rest = [batches(corpus, rank=rank, world_size=2) for rank in range(2)]
        for each in rest:
            each.load_state_dict(states)
        batch, parts = next(whole), [next(each) for each in rest]
        assert torch.equal(batch.tokens_BT, torch.cat([part.tokens_BT for part in parts])), number
        assert torch.equal(batch.labels_BT, torch.cat([part.labels_BT for part in parts]))
        assert rest[1].state_dict() == whole.state_dict()
        rest[0].load_state_dict(states)  # taken back, it reads the same again
        assert torch.equal(next(rest[0]).tokens_BT, parts[0].tokens_BT)


def test_a_state_of_other_data_is_refused(corpus: tuple[Path, Any]) -> None:
    state = batches(corpus).state_dict()
    with pytest.raises(ConfigError, match="seq_len changed"):
        batches(corpus, seq_len=8).load_state_dict(state)
    assert not torch.equal(next(batches(corpus, seed=1)).tokens_BT, next(batches(corpus)).tokens_BT)
