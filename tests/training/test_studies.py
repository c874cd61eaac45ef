"""Studies, with settings so small that they show the machinery and, where a minute is enough, the effect."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from wootz.core.errors import BadRequestError, ConfigError
from wootz.data.batch import IGNORED
from wootz.training.fit import FitConfig, accuracy, fit
from wootz.training.studies import parts, positions, recall, vocabulary
from wootz.training.studies.memory import read_back, recalled
from wootz.training.studies.positions import Size
from wootz.training.studies.study import Study, run_study

TINY = Size(width=16, layers=1, heads=2, length=32, batch_size=4, steps=3)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(
        "".join(f"{number}: the quick brown fox jumps over {number % 7} lazy dogs.\n" for number in range(3000))
    )
    return file


def test_a_pair_is_asked_once_and_its_label_is_its_value() -> None:
    batch = recall.recall_batch(5, 8, torch.Generator().manual_seed(0))
    for tokens, labels in zip(batch.tokens_BT.tolist(), batch.labels_BT.tolist(), strict=True):
        values = dict(zip(tokens[:10:2], tokens[1:10:2], strict=True))
        assert len(values) == 5
        assert all(key < 16 <= value < 32 for key, value in values.items())
        assert {tokens[place]: labels[place] for place in range(10, 20, 2)} == values
        assert labels[:10] == [IGNORED] * 10


def test_a_copy_is_asked_token_by_token() -> None:
    batch = recall.copy_batch(4, 2, torch.Generator().manual_seed(0))
    for tokens, labels in zip(batch.tokens_BT.tolist(), batch.labels_BT.tolist(), strict=True):
        assert labels == [IGNORED] * 4 + tokens[:4] + [IGNORED]


def test_one_layer_of_attention_behind_a_convolution_looks_pairs_up() -> None:
    torch.manual_seed(0)
    model = recall.small_model(16, 32, layers="C-A-")
    generator = torch.Generator().manual_seed(0)
    batches = iter(lambda: recall.recall_batch(4, 32, generator, 8), None)
    assert accuracy(model, recall.recall_batch(4, 64, generator, 8)) < 0.3
    fit(model, batches, FitConfig(steps=150, learning_rate=1e-2))
    assert accuracy(model, recall.recall_batch(4, 64, generator, 8)) > 0.95


def test_variants_with_points_of_their_own_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from wootz.cli.studies import run_studies

    def run(variant: str, seed: int) -> dict[str, float]:
        return {"1": 0.5, variant: 0.25}

    study = Study(name="s", question="?", variants=("7.5", "8.5"), x="x", y="y", settings={}, run=run)
    run_studies([study], 1, tmp_path, None, False)
    shown = capsys.readouterr().out
    assert shown.count("0.250") == 2
    assert shown.count("8.5") == 3  # the variant of two rows, and its own point


def test_a_study_that_was_stopped_goes_on(tmp_path: Path) -> None:
    ran: list[tuple[str, int]] = []

    def run(variant: str, seed: int) -> dict[str, float]:
        ran.append((variant, seed))
        if len(ran) == 3:
            raise KeyboardInterrupt
        return {"1": float(seed), "2": 2.0}

    study = Study(name="s", question="?", variants=("a", "b"), x="x", y="y", settings={"k": (1, 2)}, run=run)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path, range(2))
    report = run_study(study, tmp_path, range(2))
    assert ran == [("a", 0), ("b", 0), ("a", 1), ("a", 1), ("b", 1)]
    assert report["curves"]["a"]["1"] == {"mean": 0.5, "deviation": 0.5**0.5, "num_seeds": 2}
    assert json.loads((tmp_path / "report.json").read_text())["seeds"] == [0, 1]
    assert (tmp_path / "plot.png").stat().st_size > 1000
    (tmp_path / "results.jsonl").write_text("nonsense")
    with pytest.raises(ConfigError, match="not the results of a study"):
        run_study(study, tmp_path, range(1))


def test_every_study_measures_each_point(text: Path) -> None:
    perplexity, passkey = positions.extrapolation_studies(schemes=("rope",), size=TINY, reach=2, text=text)
    studies = [
        recall.recall_study(
            pairs=(2, 3), steps=2, width=16, batch_size=4, models=("attention", "gated linear, state 2")
        ),
        recall.recall_study(pairs=(4,), steps=2, width=16, batch_size=4, models=("attention",), task="copy"),
        perplexity,
        passkey,
        positions.extension_study(methods=("NTK",), size=TINY, factor=2, tuning_steps=2, text=text),
        parts.streaming_study(size=TINY, window=16, sinks=2, tokens=64, text=text),
        parts.balancing_study(experts=4, size=TINY, text=text, every=2),
        parts.kv_heads_study(size=Size(width=16, layers=1, heads=2, length=16, steps=2, batch_size=2), text=text),
    ]
    points = [2, 1, 2, 2, 2, 3, 2, 2]
    for study, number in zip(studies, points, strict=True):
        for variant in study.variants:
            curve = study.run(variant, 0)
            assert len(curve) == number, study.name
            assert all(value >= 0 for value in curve.values())


def test_vocabularies_are_compared_in_bits_per_byte(text: Path) -> None:
    study = vocabulary.vocabulary_study(sizes=(257, 300, 400), widths=(16,), size=TINY, text=text, most_bytes=150_000)
    curve = study.run("width 16", 0)
    assert list(curve) == ["257", "300", "400"]
    # Hardly trained, a token costs log2(vocabulary) bits, and those of merges stand for more bytes than one.
    assert 7.5 < curve["257"] < 8.5
    assert max(curve["300"], curve["400"]) < 0.6 * curve["257"]


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(BadRequestError, match="no model is called elephant"):
        recall.recall_study(models=("elephant",))
    with pytest.raises(BadRequestError, match='no task is called "juggle"'):
        recall.recall_study(task="juggle")


def test_a_state_of_n_dimensions_holds_n_pairs_and_loses_more() -> None:
    """Written as linear attention and the delta rule write; nothing is learned."""
    generator = torch.Generator().manual_seed(0)
    for rule in ("sum", "delta rule"):
        assert [recalled(rule, "spread", 8, pairs, 64, generator) for pairs in (1, 4, 8)] == [1.0, 1.0, 1.0]
        by_pairs = [recalled(rule, "random", 8, pairs, 256, generator) for pairs in (2, 8, 32)]
        by_size = [recalled(rule, "random", size, 16, 256, generator) for size in (4, 16, 64)]
        assert by_pairs == sorted(by_pairs, reverse=True)
        assert by_size == sorted(by_size)
        assert by_pairs[-1] < 0.8
    assert recalled("attention", "random", 4, 32, 64, generator) == 1.0


def test_only_the_delta_rule_replaces_what_it_knew() -> None:
    key, first, second = torch.eye(4)[0], torch.eye(3)[0], torch.eye(3)[1]
    keys, values = torch.stack((key, key))[None], torch.stack((first, second))[None]
    assert read_back("sum", keys, values)[0, -1].tolist() == [1, 1, 0]
    assert read_back("delta rule", keys, values)[0, -1].tolist() == [0, 1, 0]
