"""Packing and mixing: every token once in an epoch, isolated documents, shares kept, the same order for any ranks."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import random_documents, write_store

from wootz.core.errors import ConfigError
from wootz.data.batch import IGNORED
from wootz.data.mixture import Mixture
from wootz.data.packing import PackedBatches
from wootz.data.permutation import key_of, permuted
from wootz.data.token_store import TokenStore
from wootz.models import Decoder, PackedContext
from wootz.training.fit import language_loss


@given(num=st.integers(1, 700), key=st.integers(0, 2**64 - 1))
@settings(max_examples=60, deadline=None)
def test_a_permutation_leaves_nothing_out(num: int, key: int) -> None:
    assert sorted(permuted(place, num, key) for place in range(num)) == list(range(num))


def test_permutations_look_random() -> None:
    """Every thing comes to every place about equally often, and neighbours part."""
    counts = Counter((place, permuted(place, 5, key_of(seed))) for seed in range(4000) for place in range(5))
    expected = 4000 / 5
    chi_squared = sum((counts[a, b] - expected) ** 2 / expected for a in range(5) for b in range(5))
    assert chi_squared < 45  # 16 degrees of freedom: 1 in 10,000
    order = [permuted(place, 10_000, key_of("x")) for place in range(10_000)]
    correlation = torch.corrcoef(torch.tensor([order[:-1], order[1:]], dtype=torch.float64))[0, 1]
    assert abs(correlation) < 0.04


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TokenStore]:
    folder = tmp_path_factory.mktemp("stores")
    return {
        name: write_store(folder / name, random_documents(30 * (place + 1), seed=place), tokens_per_shard=300)
        for place, name in enumerate(("web", "code", "books"))
    }


def test_an_epoch_reads_every_token_once_and_the_next_cuts_elsewhere(tmp_path: Path) -> None:
    tokens = iter(range(64))
    documents = [[next(tokens) for _ in range(n)] for n in (5, 20, 1, 30, 8)]
    store = write_store(tmp_path, documents, tokens_per_shard=16)
    batches = PackedBatches({"a": store}, seq_len=8, batch_size=4, seed=1)
    epochs = [torch.cat([next(batches).tokens_BT for _ in range(2)]) for _ in range(3)]
    for rows in epochs:
        assert sorted(rows.flatten().tolist()) == list(range(64))
        assert rows[:, 0].tolist() != sorted(rows[:, 0].tolist())
    assert len({tuple(sorted(rows[:, 0].tolist())) for rows in epochs}) == 3


def test_labels_are_the_next_tokens_and_stop_where_documents_do(stores: dict[str, TokenStore]) -> None:
    batches = PackedBatches(stores, seq_len=32, batch_size=6, seed=0)
    whole = [tuple(store.document(n).tolist()) for store in stores.values() for n in range(store.num_documents)]
    for _ in range(5):
        batch = next(batches)
        assert batch.documents is not None
        for tokens, labels, lengths in zip(batch.tokens_BT, batch.labels_BT, batch.documents, strict=True):
            assert sum(lengths) == 32
            start = 0
            for number, length in enumerate(lengths):
                part, asked = tokens[start : start + length].tolist(), labels[start : start + length].tolist()
                assert asked[:-1] == part[1:]
                middle = 0 < number < len(lengths) - 1
                if middle:
                    assert tuple(part) in whole
                    assert asked[-1] == IGNORED
                start += length
            if labels[-1] != IGNORED:  # The row cut its last document: what comes next in it is asked.
                tail = [*tokens[32 - lengths[-1] :].tolist(), labels[-1].item()]
                assert any(_holds(document, tail) for document in whole)
    assert (next(PackedBatches(stores, seq_len=32, batch_size=6, seed=0, isolate=False)).labels_BT != IGNORED).all()


def _holds(document: tuple[int, ...], part: list[int]) -> bool:
    return any(list(document[n : n + len(part)]) == part for n in range(len(document)))


def test_no_gradient_and_no_position_crosses_a_document(stores: dict[str, TokenStore]) -> None:
    """The loss of one document has no gradient at the inputs of another, and is the loss of it alone."""
    torch.manual_seed(0)
    model = _model()
    batch = next(PackedBatches(stores, seq_len=48, batch_size=2, seed=3))
    tokens_T, lengths = batch.tokens_BT.flatten(), batch.lengths
    assert len(lengths) > 4
    inputs = []
    handle = model.embedding.register_forward_hook(lambda *args: inputs.append(args[2].retain_grad() or args[2]))
    hidden_TD = model(tokens_T, batch.positions_T, PackedContext(lengths))
    start, stop = sum(lengths[:2]), sum(lengths[:3])
    hidden_TD[start:stop].sum().backward()
    touched = inputs[0].grad.abs().sum(-1) > 0
    assert touched[start : stop - 1].any()
    assert not touched[:start].any()
    assert not touched[stop:].any()
    handle.remove()

    losses, asked = 0.0, 0
    labels_T, place = batch.labels_BT.flatten(), 0
    for length in lengths:
        part, labels = tokens_T[place : place + length], labels_T[place : place + length]
        hidden = model(part, torch.arange(length), PackedContext([length]))
        losses += torch.nn.functional.cross_entropy(model.unembed(hidden), labels, reduction="sum").item()
        asked += int((labels != IGNORED).sum())
        place += length
    assert language_loss(model, batch).item() == pytest.approx(losses / asked, abs=1e-5)


def _model() -> Decoder:
    from wootz.training.studies.positions import Size, build

    return build(Size(length=48), vocab_size=256, max_position_embeddings=48)


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_any_number_of_ranks_reads_the_same_global_batches(stores: dict[str, TokenStore], world_size: int) -> None:
    settings = {"seq_len": 16, "batch_size": 6, "seed": 5}
    weights = {"web": 5, "code": 2, "books": 3}
    alone = PackedBatches(stores, weights, **settings)
    ranks = [PackedBatches(stores, weights, **settings, rank=rank, world_size=world_size) for rank in range(world_size)]
    for _ in range(12):
        whole, parts = next(alone), [next(rank) for rank in ranks]
        assert torch.equal(whole.tokens_BT, torch.cat([part.tokens_BT for part in parts]))
        assert torch.equal(whole.labels_BT, torch.cat([part.labels_BT for part in parts]))
        assert whole.documents == tuple(row for part in parts for row in part.documents or ())


@settings(max_examples=15, deadline=None)
@given(stop=st.integers(0, 30), change=st.booleans())
def test_resuming_neither_repeats_nor_skips(stores: dict[str, TokenStore], stop: int, change: bool) -> None:
    def batches() -> PackedBatches:
        return PackedBatches(stores, seq_len=16, batch_size=4, seed=9, max_epochs=6)

    straight, stopped = batches(), batches()
    for _ in range(stop):
        next(straight), next(stopped)
    if change:
        straight.mixture.set_weights({"web": 1, "code": 0, "books": 5})
        stopped.mixture.set_weights({"web": 1, "code": 0, "books": 5})
    state = json.loads(json.dumps(stopped.state_dict()))
    resumed = batches()
    resumed.load_state_dict(state)
    for _ in range(10):
        assert torch.equal(next(straight).tokens_BT, next(resumed).tokens_BT)
    assert straight.state_dict() == resumed.state_dict()


def test_a_skipped_batch_is_the_one_that_would_have_come(stores: dict[str, TokenStore]) -> None:
    read, skipped = (PackedBatches(stores, seq_len=16, batch_size=2, seed=0) for _ in range(2))
    next(read), skipped.next_rows()
    assert torch.equal(next(read).tokens_BT, next(skipped).tokens_BT)


def test_a_state_of_other_data_is_refused(stores: dict[str, TokenStore]) -> None:
    state = PackedBatches(stores, seq_len=16, batch_size=2, seed=0).state_dict()
    with pytest.raises(ConfigError, match="seq_len, tokens changed"):
        PackedBatches({"web": stores["web"]}, seq_len=32, batch_size=2, seed=0).load_state_dict(state)


@settings(max_examples=40, deadline=None)
@given(weights=st.lists(st.floats(0.01, 1), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_every_stretch_is_mixed_as_the_whole_is(weights: list[float], seed: int) -> None:
    named = {str(place): weight for place, weight in enumerate(weights)}
    mixture, total = Mixture(named, dict.fromkeys(named, 10**9), seed=seed), sum(weights)
    given = Counter()
    for num_drawn in range(1, 400):
        name, number = mixture.draw()
        assert number == given[name]
        given[name] += 1
        assert all(abs(given[n] - num_drawn * named[n] / total) <= 2 for n in named)
    assert sum(share.realised for share in mixture.report().values()) == pytest.approx(1)


def test_a_fifth_epoch_is_warned_of_once_and_a_cap_ends_a_source() -> None:
    mixture = Mixture({"web": 1, "wiki": 1}, {"web": 1000, "wiki": 10})
    with pytest.warns(UserWarning, match='"wiki" is read for more than 4 epochs') as warnings:
        [mixture.draw() for _ in range(200)]
    assert len(warnings) == 1
    assert mixture.epochs() == {"web": 0.1, "wiki": 10}
    capped = Mixture({"web": 1, "wiki": 1}, {"web": 100, "wiki": 10}, max_epochs=2)
    [capped.draw() for _ in range(200)]
    assert capped.report()["wiki"].rows == 20
    assert capped.weights == {"web": 1.0}
    [capped.draw() for _ in range(20)]
    with pytest.raises(ConfigError, match="every source has been read"):
        capped.draw()


def test_wrong_settings_are_refused(stores: dict[str, TokenStore], tmp_path: Path) -> None:
    for problem, changes in {
        "multiple of 3": {"world_size": 3},
        "fewer than one row": {"seq_len": 10_000},
        "not of the same names": {"weights": {"web": 1}},
        "not weights": {"weights": {"web": -1, "code": 1, "books": 1}},
    }.items():
        with pytest.raises(ConfigError, match=problem):
            PackedBatches(stores, **{"seq_len": 16, "batch_size": 4, "seed": 0} | changes)
    other = write_store(tmp_path / "other", random_documents(9), vocab_size=300)
    with pytest.raises(ConfigError, match="different tokenizers"):
        PackedBatches({**stores, "other": other}, seq_len=16, batch_size=4, seed=0)


def test_utilisation_counts_what_batches_ask(stores: dict[str, TokenStore]) -> None:
    batches = PackedBatches(stores, seq_len=32, batch_size=4, seed=0)
    said = batches.utilisation(10)
    made = [next(batches) for _ in range(10)]
    asked = torch.cat([batch.labels_BT for batch in made]) != IGNORED
    assert said.asked == asked.double().mean().item()
    assert said.documents_per_row == sum(len(batch.lengths) for batch in made) / 40
    assert said.cut == pytest.approx(
        sum(batch.labels_BT[:, -1].ne(IGNORED).sum().item() for batch in made) / (said.documents_per_row * 40)
    )
