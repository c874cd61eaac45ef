"""Figures about tokenizers: counted, exact, and right where published ones are not."""

from __future__ import annotations

import math
import random
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from wootz.core import BadRequestError, UnsupportedError
from wootz.tokenization import Tokenizer
from wootz.tokenization.fertility import LengthBudget, measure
from wootz.tokenization.fim import FimTransform, fim_tokens
from wootz.tokenization.token_cost import Workload, token_cost
from wootz.tokenization.vocabulary_size import bits_per_byte, first_merges, fit_power_law, study

from .test_injection import BUILT


def test_measured_counts(smollm2: Tokenizer) -> None:
    text = "The quick brown fox - isn't it?"
    seen = measure(smollm2, [text, text])
    assert seen.num_tokens == 2 * len(smollm2.encode(text, add_special_tokens=False))
    assert (seen.num_words, seen.num_bytes, seen.round_trip_rate, seen.unknown_rate) == (12, 62, 1.0, 0.0)
    assert measure(smollm2, ["敏捷的棕色狐狸"]).tokens_per_word is None
    assert measure(smollm2, []).tokens_per_character == 0


def test_control_tokens_that_are_spelled_out_are_counted_as_text(smollm2: Tokenizer) -> None:
    assert measure(smollm2, ["<|im_end|>"]).num_tokens > 1


def test_what_a_vocabulary_cannot_spell_shows() -> None:
    seen = measure(BUILT["unigram", "chatml"], ["aé"])
    assert (seen.unknown_rate, seen.round_trip_rate) == (0.5, 0.0)


@settings(deadline=None)
@given(words=st.lists(st.text(st.characters(categories=["L"], codec="utf-8"), min_size=1), min_size=1))
def test_a_word_is_a_token_at_least(words: list[str], smollm2: Tokenizer) -> None:
    """So the published 0.93 tokens for an English word cannot be."""
    text = " ".join(words)
    assert len(smollm2.encode(text, add_special_tokens=False)) >= len(text.split())


# --- cost and length --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "tokens", "cost"),
    [(Fraction(24, 14), 1509, "45.3"), (Fraction(18, 14), 1131, "33.9"), (Fraction(13, 14), 817, "24.5")],
)
def test_the_published_example_is_reproduced(ratio: Fraction, tokens: int, cost: str) -> None:
    result = token_cost(Workload(600, 80, 200, 1_000_000, Decimal(1), Decimal(1)), ratio)
    assert result.tokens_per_conversation == tokens
    assert result.tokens_per_day == tokens * 1_000_000
    assert result.cost == Decimal(tokens) * 30
    assert f"{result.cost / 1000:.1f}" == cost


def test_answers_may_cost_more() -> None:
    workload = Workload(600, 80, 200, 1000, Decimal("0.15"), Decimal("0.60"), days=1)
    result = token_cost(workload, Fraction(1, 4))
    assert result.cost == 1000 * (170 * Decimal("0.15") + 50 * Decimal("0.60")) / 1_000_000


def test_lengths_in_tokens_and_characters() -> None:
    budget = LengthBudget({"en": Fraction(1, 4), "zh": Fraction(4, 5)})
    assert (budget.tokens(1000, "en"), budget.characters(200, "en")) == (250, 800)
    assert (budget.tokens(1001, "zh"), budget.characters(200, "zh")) == (801, 250)
    assert "cuts the answer at about 800 characters" in (budget.check(200, 1000, "en") or "")
    assert "looks like a number of characters" in (budget.check(1000, 1000, "en") or "")
    assert budget.check(300, 1000, "en") is None
    with pytest.raises(BadRequestError, match="en, zh"):
        budget.tokens(1, "ja")


# --- the size of a vocabulary -----------------------------------------------------------------------------------


def train(texts: list[str], size: int) -> tokenizers.Tokenizer:
    result = tokenizers.Tokenizer(models.BPE())
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    result.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    result.train_from_iterator(texts, trainer)
    return result


def test_one_training_gives_every_smaller_vocabulary(some_texts: list[str]) -> None:
    texts = some_texts[:20]
    large = train(texts, 2000)
    for size in (257, 300, 1000, 2000):
        small, trained = first_merges(large.to_str(), size), train(texts, size)
        assert small.get_vocab_size() == size
        assert [small.encode(t).tokens for t in some_texts[20:30]] == [
            trained.encode(t).tokens for t in some_texts[20:30]
        ]
    with pytest.raises(BadRequestError, match="from 257 to"):
        first_merges(large.to_str(), 100)


def test_more_tokens_shorter_texts_less_and_less(some_texts: list[str]) -> None:
    backend = train(some_texts[:30], 4096)
    large = Tokenizer(backend, bos_token_id=None, eos_token_ids=(), chat_template=None)
    points = study(large, some_texts[30:60], [512, 1024, 2048, 4096], width=64, layer_parameters=100_000, tied=False)
    saved = [a.num_tokens - b.num_tokens for a, b in pairwise(points)]
    assert all(tokens > 0 for tokens in saved)
    assert saved == sorted(saved, reverse=True)
    assert points[0].embedding_parameters == 2 * 512 * 64
    assert points[0].flops == points[0].num_tokens * 2 * (512 * 64 + 100_000)


def test_the_published_exponent_is_not_that_of_its_own_points() -> None:
    """1B with 32K and 70B with 200K lie on N^0.43; N^0.65 from the first would ask for 506K."""
    coefficient, exponent = fit_power_law([(1e9, 32e3), (70e9, 200e3)])
    assert exponent == pytest.approx(0.4313, abs=1e-4)
    assert coefficient * 70e9**exponent == pytest.approx(200e3)
    assert pytest.approx(506e3, rel=1e-3) == 32e3 * 70**0.65


def test_bits_per_byte_of_a_uniform_guess() -> None:
    assert bits_per_byte(100 * math.log(256), num_bytes=100) == pytest.approx(8)


# --- fill in the middle -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_fim() -> Tokenizer:
    backend = train(["a"], 257)
    backend.add_special_tokens(["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"])
    return Tokenizer(backend, bos_token_id=None, eos_token_ids=(), chat_template=None)


@settings(deadline=None)
@given(document=st.text(max_size=60), seed=st.integers(0, 2**32))
def test_nothing_of_a_document_is_lost(document: str, seed: int, with_fim: Tokenizer) -> None:
    mark = fim_tokens(with_fim)
    ids = FimTransform(with_fim, mark, rng=random.Random(seed), rate=1.0)(document)
    assert [ids.count(id) for id in (mark.prefix, mark.suffix, mark.middle)] == [1, 1, 1]
    suffix, middle = ids.index(mark.suffix), ids.index(mark.middle)
    assert ids[0] == mark.prefix
    assert suffix < middle
    between, inner, last = ids[1:suffix], ids[suffix + 1 : middle], ids[middle + 1 :]
    psm = with_fim.decode(between + last + inner)
    spm = with_fim.decode(last + inner)
    assert document == psm or (not between and document == spm)


def test_rates_are_kept(with_fim: Tokenizer) -> None:
    transform = FimTransform(with_fim, fim_tokens(with_fim), rng=random.Random(0), rate=0.8, spm_rate=0.25)
    ids = [transform("words " * 60) for _ in range(2000)]
    filled = [each for each in ids if each[0] == transform.tokens.prefix]
    suffix_first = [each for each in filled if each[1] == transform.tokens.suffix]
    assert len(filled) / 2000 == pytest.approx(0.8, abs=0.03)
    assert len(suffix_first) / len(filled) == pytest.approx(0.25, abs=0.04)


def test_a_vocabulary_without_the_tokens() -> None:
    with pytest.raises(UnsupportedError, match="fill in"):
        fim_tokens(BUILT["byte-level", "chatml"])
