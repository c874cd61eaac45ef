"""What data and training do together: collapse and its remedy, refinement in mid-run, pruning by loss."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from stores import random_documents, write_store

from wootz.data.packing import PackedBatches
from wootz.data.refinement import refine
from wootz.training.pruning import document_losses, informative, prune
from wootz.training.studies.collapse import collapse_study
from wootz.training.studies.positions import Size, build


def test_rare_words_only_ever_vanish_unless_people_go_on_writing() -> None:
    """Of frequencies this is a theorem: a word that no one wrote has probability 0 ever after."""
    study = collapse_study(generations=8, vocab_size=256, num_tokens=2000)
    alone, helped = ([*study.run(variant, 0).values()] for variant in study.variants)
    assert alone == sorted(alone, reverse=True)
    assert alone[-1] < 0.7 * alone[0]
    assert helped[-1] > alone[-1] + 0.2


def test_a_language_model_collapses_too() -> None:
    size = Size(width=16, layers=1, heads=2, length=16, batch_size=8, steps=10)
    study = collapse_study(generations=1, human=(0.5,), learner="model", vocab_size=32, num_tokens=200, size=size)
    curve = study.run("human 0.5", 0)
    assert curve["0"] == 1
    assert 0 < curve["1"] <= 2


def test_refinement_reads_what_scores_well_and_resumes(tmp_path: Path) -> None:
    stores = {
        "odd": write_store(tmp_path / "odd", [[2 * n % 64 + 1 for n in range(40)]] * 30, tokens_per_shard=9999),
        "even": write_store(tmp_path / "even", [[2 * n % 64 for n in range(40)]] * 30, tokens_per_shard=9999),
    }

    def batches() -> PackedBatches:
        return PackedBatches(stores, seq_len=16, batch_size=4, seed=0)

    run = batches()
    next(run)
    state = run.state_dict()["mixture"]["rows"]
    change = refine(
        run, lambda texts: np.array([float(int(text) % 2) for text in texts]), lambda ids: str(ids[0]), strength=3.0
    )
    assert change.scores == {"odd": 1.0, "even": 0.0}
    assert change.after["odd"] == pytest.approx(1 / (1 + np.exp(-3)))
    assert run.state_dict()["mixture"]["rows"] == state
    assert json.loads(json.dumps(change.to_json()))["step"] == 1
    resumed = batches()
    resumed.load_state_dict(json.loads(json.dumps(run.state_dict())))
    for _ in range(5):
        assert torch.equal(next(run).tokens_BT, next(resumed).tokens_BT)


def test_pruning_ranks_documents_by_what_the_model_makes_of_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    store = write_store(tmp_path / "all", [[5], *random_documents(20, longest=20)], tokens_per_shard=9999)
    model = build(Size(width=16, layers=1, heads=2, length=20), vocab_size=256, max_position_embeddings=64)
    losses = document_losses(model, store)
    tokens = torch.tensor(store.document(3).astype(np.int64))
    with torch.no_grad():
        from wootz.data.batch import Batch
        from wootz.training.fit import language_loss

        assert losses[3] == pytest.approx(language_loss(model, Batch.of(tokens[None])).item(), abs=1e-5)
    assert losses[0] == np.inf
    for part in ("low", "middle", "high"):
        kept = prune(store, losses, tmp_path / part, 0.25, part)
        chosen = informative(losses, 0.25, part)
        assert kept.num_documents == len(chosen) == 5
        assert [kept.document(n).tolist() for n in range(5)] == [store.document(int(n)).tolist() for n in chosen]
    low, high = informative(losses, 0.25, "low"), informative(losses, 0.25, "high")
    assert losses[low].max() < losses[high].min()
