"""Studies of long texts, experts, new tokens and swapped positions, in miniature: what they compare is what they say,
and the directions that a few seconds of training can show."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from wootz.core.errors import BadRequestError, ConfigError
from wootz.models.blocks.moe import active_parameters
from wootz.training.fit import FitConfig, fit
from wootz.training.studies import expansion, experts, long_context, positions
from wootz.training.studies.positions import SearchConfig, Size, build, extension_study
from wootz.training.studies.study import run_study
from wootz.training.studies.swap import swap_study, swapped
from wootz.training.studies.text import HELD_OUT, corpus, held_out_rows, training_rows

TINY = Size(width=32, layers=2, heads=2, length=32, batch_size=8, steps=60)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


# --- text -------------------------------------------------------------------------------------------------------------


def test_training_calibration_and_evaluation_share_no_byte() -> None:
    places_N = torch.arange(1000)
    trained = {
        int(place) for batch in islice(training_rows(places_N, 8, 10, 0), 200) for place in batch.labels_BT.unique()
    }
    bred, judged = (
        set(held_out_rows(places_N, 6, 10, span).unique().tolist())
        for span in (positions.CALIBRATION, positions.EVALUATION)
    )
    assert max(trained) < 1000 * (1 - HELD_OUT) <= min(bred)
    assert max(bred) < min(judged)
    assert max(judged) < 1000


def test_a_text_that_is_not_there_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        corpus(tmp_path / "none.txt")


# --- LongRoPE ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_bred_factors_are_no_worse_than_the_rules_and_stand_in_the_report(tmp_path: Path) -> None:
    breeding = SearchConfig(population=6, generations=2, parents=2, num_rows=2)
    study = extension_study(methods=("naive", "LongRoPE"), size=TINY, factor=4, tuning_steps=4, breeding=breeding)
    report = run_study(study, tmp_path, range(1))
    assert set(report["curves"]) == {"naive", "LongRoPE", "naive + tuning", "LongRoPE + tuning"}
    (note,) = report["notes"]
    found = note["search"]
    assert (note["variant"], note["seed"]) == ("LongRoPE", 0)
    assert found["loss"] <= min(found["seeds"].values())
    assert found["factors"] == sorted(found["factors"])
    assert len(found["factors"]) == TINY.width // TINY.heads // 2

    def never(variant: str, seed: int) -> dict[str, float]:
        raise AssertionError("this was run before")

    object.__setattr__(study, "run", never)
    assert json.dumps(run_study(study, tmp_path, range(1))) == json.dumps(
        json.loads((tmp_path / "report.json").read_text())
    )


def test_what_was_measured_in_breeding_is_the_stretched_model() -> None:
    torch.manual_seed(0)
    model = build(TINY).eval()
    breeding = SearchConfig(population=4, generations=1, parents=2, num_rows=2)
    found = positions.breed_factors(model, TINY.length, 2, breeding, seed=0, text=None)
    stretched = positions.scaled(model, 2, "longrope", found.factors)
    rows_BT = held_out_rows(corpus(), 2, 2 * TINY.length, positions.CALIBRATION)
    assert positions.losses_by_position(stretched, rows_BT).mean().item() == pytest.approx(found.loss)


# --- long rows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_every_schedule_spends_the_same_tokens_and_the_same_long_steps(factor: int) -> None:
    size = Size(batch_size=12, length=8, steps=40)
    for variant in long_context.SCHEDULES:
        plan = long_context.lengths(variant, 40, factor, 0.25)
        assert len(plan) == 40
        assert plan.count(factor) == (0 if variant == "short only" else 10)
        rows = list(long_context.rows_of(plan, size, 0, None))
        assert {batch.tokens_BT.numel() for batch in rows} == {12 * 8}
        assert [batch.tokens_BT.shape[1] // 8 for batch in rows] == plan
    mixed, stages = (long_context.lengths(name, 40, factor, 0.25) for name in long_context.SCHEDULES[2:])
    assert [step for step, times in enumerate(mixed) if times > 1] == list(range(3, 40, 4))
    assert stages == sorted(stages)


def test_long_rows_cost_more_per_token() -> None:
    flops = long_context.long_context_study(size=TINY).settings["training_flops_per_token"]
    assert flops["short only"] < flops["mixed from the start"] == flops[long_context.STRETCHED]


@pytest.mark.slow
def test_who_never_saw_long_rows_reads_them_worst() -> None:
    size = replace(TINY, layers=1, length=16, batch_size=16, steps=160)
    study = long_context.long_context_study(size=size, factor=8)
    curves = {variant: study.run(variant, 0) for variant in study.variants}
    assert all(set(curve) == {"16", "32", "64", "128"} for curve in curves.values())
    assert max(curves, key=lambda variant: curves[variant]["128"]) == "short only"


# --- experts ----------------------------------------------------------------------------------------------------------


def test_mixtures_cost_the_same_per_token_but_for_their_routers() -> None:
    costs = {}
    for name, words in experts.MIXTURES.items():
        model = build(TINY, **experts.mixture(*words, size=TINY))
        routers = sum(parameter.numel() for path, parameter in model.named_parameters() if "router" in path)
        costs[name] = active_parameters(model) - routers
    assert len(set(costs.values())) == 1


@pytest.mark.slow
def test_experts_are_told_apart_and_measured(tmp_path: Path) -> None:
    bits, entropy = experts.shared_expert_studies(variants=("dense", "7, top 1, 1 shared"), size=TINY, every=30)
    curves = run_study(bits, tmp_path / "bits", range(1))["curves"]
    assert set(entropy.variants) == {"7, top 1, 1 shared"}
    assert all(
        list(curve) == ["1", "30", "60"] and curve["60"]["mean"] < curve["1"]["mean"] for curve in curves.values()
    )
    assert all(0 < share < 1 for share in entropy.run("7, top 1, 1 shared", 0).values())


@pytest.mark.slow
def test_the_smaller_the_capacity_the_more_is_dropped_and_balance_helps() -> None:
    drops, bits = experts.capacity_studies(factors=(1.0, 8.0), size=replace(TINY, layers=1), every=30)
    last = {variant: drops.run(variant, 0)["60"] for variant in drops.variants}
    assert last["capacity 1"] > last["capacity 8"] == last["unlimited"] == 0.0
    assert last["capacity 1, unbalanced"] > last["capacity 1"]
    assert bits.run("unlimited", 0) == bits.run("capacity 8", 0)


def test_impossible_experts_are_one_error() -> None:
    drops, _ = experts.capacity_studies(top_k=9, size=TINY)
    with pytest.raises(BadRequestError, match="9 experts per token"):
        drops.run("unlimited", 0)


# --- new tokens -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_new_tokens_begin_better_as_their_pieces_than_at_random(tmp_path: Path) -> None:
    learned, kept = expansion.expansion_studies(
        size=replace(TINY, layers=1, batch_size=16, steps=200),
        vocab_size=384,
        num_terms=64,
        tuning_steps=30,
        measure=3,
        most_bytes=100_000,
        held_out_bytes=6_000,
    )
    gain = {variant: learned.run(variant, 0) for variant in learned.variants}
    known = {variant: kept.run(variant, 0) for variant in kept.variants}
    assert all(list(curve) == ["0", "10", "20", "30"] and curve["30"] < curve["0"] for curve in gain.values())
    assert gain["subpiece-mean"]["0"] < gain["random"]["0"]
    assert known["subpiece-mean"]["0"] > known[expansion.AS_IT_IS]["0"]  # new rows compete in every softmax
    assert gain["random, staged"]["0"] == gain["random"]["0"]
    assert gain["random, staged"]["10"] != gain["random"]["10"]


def test_only_the_new_rows_move_in_the_first_stage() -> None:
    torch.manual_seed(0)
    model = build(TINY)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    new_V = torch.zeros(256, dtype=torch.bool)
    new_V[[97, 101]] = True
    rows = training_rows(corpus(), 4, 16, 0)
    with expansion.only_rows(model, new_V):
        fit(model, rows, FitConfig(steps=3, weight_decay=0.0))
    for name, value in model.state_dict().items():
        moved = value != before[name]
        assert torch.equal(moved.any(-1), new_V) if "embedding" in name or "head" in name else not moved.any()
    fit(model, rows, FitConfig(steps=1))
    assert all(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_bits_are_those_of_a_model_that_knows_nothing() -> None:
    class Uniform:
        def __call__(self, tokens_T: Tensor, positions_T: Tensor, context: object) -> Tensor:
            assert positions_T.tolist() == ([*range(7)] * 40)[: len(positions_T)]
            return tokens_T

        def unembed(self, tokens_T: Tensor) -> Tensor:
            return torch.zeros(len(tokens_T), 16)

    class Letters:
        def encode(self, text: str, **options: bool) -> list[int]:
            return [ord(letter) % 16 for letter in text]

    assert expansion.bits(Uniform(), Letters(), "a" * 1001, 7) == pytest.approx(4 * 1000 / 1001)  # type: ignore[arg-type]


def test_terms_are_those_that_save_tokens_and_can_be_written() -> None:
    from wootz.tokenization.tokenizer import Tokenizer
    from wootz.tokenization.train import train_tokenizer

    backend = train_tokenizer(["x = 1\n" * 50], vocab_size=258)
    tokenizer = Tokenizer(backend, bos_token_id=None, eos_token_ids=(), chat_template=None)
    terms = expansion.useful_terms(tokenizer, "the heart, the heart, the lung. 心臟 心臟 心臟 " * 30, 8)
    assert 0 < len(terms) <= 8
    assert " heart" in terms
    assert all(len(tokenizer.encode(term)) > 1 for term in terms)
    assert not any("\N{REPLACEMENT CHARACTER}" in term for term in terms)


# --- swapped positions ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_other_positions_are_refused_and_forced_ones_read_worse() -> None:
    study = swap_study(schemes=("rope", "rope-interleaved"), size=replace(TINY, steps=150), tuning_steps=4, measure=2)
    kept, forced = study.run("rope", 0), study.run("rope-interleaved", 0)
    assert list(kept) == ["0", "2", "4"]
    assert forced["0"] > 1.05 * kept["0"]
    model = build(TINY)
    with pytest.raises(ConfigError, match='trained with positions "rope"'):
        swapped(model, "alibi")
    assert torch.equal(swapped(model, "rope").logits([1, 2, 3]), model.eval().logits([1, 2, 3]))


def test_positions_with_weights_cannot_be_swapped() -> None:
    with pytest.raises(BadRequestError, match="learned"):
        swap_study(schemes=("rope", "learned"))
