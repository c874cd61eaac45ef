"""The teaching implementations equal the libraries, and where training has no one answer, say so."""

from __future__ import annotations

import io
import json
import math
import random
import re
from collections import Counter
from itertools import pairwise

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers, trainers

from wootz.tokenization.pre_tokenizers import PATTERNS
from wootz.tokenization.ranks import ranks_of
from wootz.tokenization.reference import (
    END_OF_WORD,
    Bpe,
    Unigram,
    train_byte_bpe,
    train_character_bpe,
    train_sentencepiece_bpe,
    train_unigram,
    train_wordpiece,
    wordpiece_encode,
)
from wootz.tokenization.reference.bpe import byte_fallback
from wootz.tokenization.train import train_tokenizer


@pytest.fixture(scope="module")
def small(some_texts: list[str]) -> list[str]:
    return [text[:600] for text in some_texts[:60]]


def merged(bpe: Bpe) -> list[tuple[str | bytes, str | bytes]]:
    return [(bpe.symbols[left], bpe.symbols[right]) for left, right in bpe.merges]


# --- BPE ------------------------------------------------------------------------------------------------------


def test_the_toy_corpus_has_the_merges_of_its_tie_break() -> None:
    bpe = train_character_bpe(["lower lowest newer wider"], 5)
    assert merged(bpe)[:4] == [("w", "e"), ("r", END_OF_WORD), ("l", "o"), ("lo", "we")]


def recounted(words: dict[str, int], num_merges: int) -> list[tuple[str, str]]:
    """BPE as it is defined: count everything anew for each merge; `max` takes the first of the most frequent."""
    corpus = {(*word, END_OF_WORD): count for word, count in words.items()}
    merges: list[tuple[str, str]] = []
    while len(merges) < num_merges:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in corpus.items():
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        best = max(pairs, key=pairs.__getitem__)
        merges.append(best)
        joined: dict[tuple[str, ...], int] = {}
        for word, count in corpus.items():
            parts: list[str] = []
            for symbol in word:
                if parts and (parts[-1], symbol) == best:
                    parts[-1] += symbol
                else:
                    parts.append(symbol)
            joined[tuple(parts)] = count
        corpus = joined
    return merges


@settings(deadline=None)
@given(words=st.lists(st.text("abc", min_size=1, max_size=8), min_size=1, max_size=12))
def test_incremental_counts_equal_counting_anew(words: list[str]) -> None:
    assert merged(train_character_bpe([" ".join(words)], 20)) == recounted(Counter(words), 20)


def test_byte_level_training_and_encoding_equal_the_library(small: list[str]) -> None:
    library = train_tokenizer(small, vocab_size=700, pattern="cl100k", special_tokens=())
    cut = pre_tokenizers.Split(tokenizers.Regex(PATTERNS["cl100k"]), "isolated")
    words = [word.encode() for text in small for word, _ in cut.pre_tokenize_str(text)]
    bpe = train_byte_bpe(words, 700)
    assert dict(zip(bpe.symbols, range(700), strict=True)) == ranks_of(library)
    ids = [id for word in words for id in bpe.encode_word([bytes([byte]) for byte in word])]
    assert ids == [id for text in small for id in library.encode(text).ids]
    assert bpe.hits + bpe.misses == len(words)
    assert bpe.hit_rate > 0.3


def test_the_cache_of_words_is_bounded_and_changes_nothing() -> None:
    bpe = train_byte_bpe([b"some", b"words", b"some"] * 3, 260)
    bpe.cache_size = 2
    words = [[bytes([byte]) for byte in word] for word in (b"some", b"words", b"other", b"some", b"some")]
    first = [bpe.encode_word(word) for word in words]
    assert (bpe.hits, bpe.misses) == (1, 4)  # "other" pushed "some" out
    assert first[0] == first[3] == first[4]


def test_sentencepiece_style_training_equals_the_library(small: list[str]) -> None:
    bpe = train_sentencepiece_bpe(small, 300)
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=len(bpe.symbols), show_progress=False)
    library.train_from_iterator(small, trainer)
    merges = [tuple(pair) for pair in json.loads(library.to_str())["model"]["merges"]]
    assert merged(bpe) == merges
    for text in small:
        words = re.findall("▁[^▁]*", "▁" + text.replace(" ", "▁"))
        ours = [bpe.symbols[id] for word in words for id in bpe.encode_word([*word])]
        assert ours == library.encode(text).tokens


def test_unseen_characters_are_bytes() -> None:
    assert byte_fallback(["▁a", "é", "中"], {"▁a", "é"}) == ["▁a", "é", "<0xE4>", "<0xB8>", "<0xAD>"]


def test_dropout_spells_the_same_word_in_many_ways() -> None:
    bpe = train_byte_bpe([b"unrelated"] * 5, 264)
    word, rng = [bytes([byte]) for byte in b"unrelated"], random.Random(0)
    assert bpe.encode_word(word) == bpe.encode_word(word, dropout=0.0)
    assert bpe.encode_word(word, dropout=1.0) == [*b"unrelated"]
    spellings = {tuple(bpe.encode_word(word, dropout=0.3, rng=rng)) for _ in range(200)}
    assert len(spellings) > 10
    assert all(b"".join(bpe.symbols[id] for id in ids) == b"unrelated" for ids in spellings)  # type: ignore[misc]


# --- WordPiece ------------------------------------------------------------------------------------------------


def test_wordpiece_encodes_as_the_library(small: list[str]) -> None:
    library = train_tokenizer(small, "wordpiece", vocab_size=600)
    vocabulary = library.get_vocab()
    words = [word for text in small for word, _ in library.pre_tokenizer.pre_tokenize_str(text.lower())]
    for word in [*words, "x" * 100, "x" * 101]:
        theirs = library.model.tokenize(word)
        assert wordpiece_encode(word, vocabulary) == [token.value for token in theirs]


def test_wordpiece_training_by_likelihood_prefers_parts_that_stay_together() -> None:
    """ "q" is always before "u"; "e" and "n" are more often together, and still more often apart."""
    words = {"quen": 2, "en": 3, "ent": 1, "e": 9, "n": 9, "enen": 1}
    by_likelihood, by_frequency = (train_wordpiece(words, 9, by=by) for by in ("likelihood", "frequency"))
    alphabet = ["##e", "##n", "##t", "##u", "e", "n", "q"]
    assert by_likelihood[:8] == [*alphabet, "qu"]
    assert by_frequency[:8] == [*alphabet, "en"]


def test_the_librarys_wordpiece_trainer_goes_by_frequency() -> None:
    """Which is why its vocabularies are not the paper's."""
    words = {"quen": 2, "en": 3, "ent": 1, "e": 9, "n": 9, "enen": 1}
    library = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    text = " ".join(word for word, count in words.items() for _ in range(count))
    library.train_from_iterator([text], trainers.WordPieceTrainer(vocab_size=11, show_progress=False))
    assert "en" in library.get_vocab()
    assert "qu" not in library.get_vocab()


# --- Unigram --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def words(texts: list[str]) -> Counter[str]:
    english = [text for text in texts if "def " in text][:6]
    return Counter("▁" + word for text in english for word in re.findall(r"[a-z]+", text.lower()))


@pytest.fixture(scope="module")
def unigram(words: Counter[str]) -> Unigram:
    return train_unigram(words, 300, seed_size=1200, longest=8)


def of_sentencepiece(words: Counter[str], size: int) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(word.removeprefix("▁") for word, count in words.items() for _ in range(count)),
        model_writer=model,
        vocab_size=size,
        model_type="unigram",
        max_sentencepiece_length=8,
        character_coverage=1.0,
        minloglevel=2,
        normalization_rule_name="identity",
        bos_id=-1,
        eos_id=-1,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def test_viterbi_equals_sentencepiece(words: Counter[str]) -> None:
    theirs = of_sentencepiece(words, 300)
    ids = range(1, theirs.get_piece_size())
    ours = Unigram({theirs.id_to_piece(id): theirs.get_score(id) for id in ids})
    for word in words:
        bare = word.removeprefix("▁")
        wanted = theirs.encode(bare, out_type=str)
        scored = [sum(map(ours.scores.__getitem__, pieces)) for pieces in (wanted, ours.encode(word))]
        assert scored[0] == pytest.approx(scored[1], abs=1e-4)
        best = theirs.nbest_encode_as_pieces(bare, 5)
        assert [math.fsum(map(ours.scores.__getitem__, pieces)) for pieces in best] == pytest.approx(
            [score for score, _ in ours.n_best(word, 5)], abs=1e-4
        )


def test_trained_pieces_are_at_least_as_likely_as_sentencepieces(words: Counter[str], unigram: Unigram) -> None:
    """Bits per character by the best segmentation, for vocabularies of one size."""
    theirs = of_sentencepiece(words, 301)  # its <unk> is a piece
    other = Unigram({theirs.id_to_piece(id): theirs.get_score(id) for id in range(1, 301)})
    length = sum(len(word) * count for word, count in words.items())
    bits = [
        -sum(model.n_best(word, 1)[0][0] * count for word, count in words.items()) / length / math.log(2)
        for model in (unigram, other)
    ]
    assert len(unigram.scores) <= 300
    assert bits[0] < 1.02 * bits[1]


def test_probabilities_sum_to_one_and_the_whole_is_more_than_the_best(unigram: Unigram) -> None:
    assert math.fsum(map(math.exp, unigram.scores.values())) == pytest.approx(1, abs=1e-6)
    ways = unigram.n_best("▁returning", 500)
    assert len({tuple(pieces) for _, pieces in ways}) == len(ways)
    assert [score for score, _ in ways] == sorted((score for score, _ in ways), reverse=True)
    total = math.log(math.fsum(math.exp(score) for score, _ in ways))
    assert total == pytest.approx(unigram.log_likelihood("▁returning"), abs=1e-3)


def test_samples_follow_the_probabilities(unigram: Unigram) -> None:
    rng = random.Random(0)
    ways = unigram.n_best("▁import", 2)
    drawn = Counter(tuple(unigram.sample("▁import", rng, n=2)) for _ in range(2000))
    share = 1 / (1 + math.exp(ways[1][0] - ways[0][0]))
    assert drawn[tuple(ways[0][1])] / 2000 == pytest.approx(share, abs=0.04)
    cold = {tuple(unigram.sample("▁import", rng, temperature=1e-6)) for _ in range(20)}
    assert cold == {tuple(ways[0][1])}


def test_an_unknown_character_stands_alone(unigram: Unigram) -> None:
    assert unigram.encode("▁a中b")[-2:] == ["中", "b"]
