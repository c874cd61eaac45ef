"""BPE-dropout by the library draws spellings as often as the reference does, and every one of them is the text."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from wootz.core import BadRequestError
from wootz.tokenization import Tokenizer, load_tokenizer
from wootz.tokenization.dropout import DropoutEncoder
from wootz.tokenization.ranks import merges_of, ranks_of
from wootz.tokenization.reference import Bpe
from wootz.tokenization.train import Algorithm, train_tokenizer, write_tokenizer


def trained(folder: Path, texts: list[str], algorithm: Algorithm = "byte_bpe", **options: int) -> Tokenizer:
    backend = train_tokenizer([text[:1000] for text in texts[:40]], algorithm, **({"vocab_size": 600} | options))
    write_tokenizer(backend, folder, roles={"eos_token": "<|endoftext|>"})
    return load_tokenizer(folder)


@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_spellings_are_drawn_as_often_as_by_the_reference(
    dropout: float, tmp_path: Path, some_texts: list[str]
) -> None:
    tokenizer, num_draws = trained(tmp_path, some_texts), 4000
    ranks = ranks_of(tokenizer._backend)
    merges = [(ranks[left], ranks[right]) for left, right in merges_of(ranks)]
    reference, rng = Bpe(sorted(ranks, key=ranks.__getitem__), merges), random.Random(0)
    word = max((token for token in ranks if token.isalpha()), key=len)
    encoder = DropoutEncoder(tokenizer, dropout)
    ours = Counter(map(tuple, encoder.encode_batch([word.decode()] * num_draws, add_special_tokens=False)))
    symbols = [bytes([byte]) for byte in word]
    theirs = Counter(tuple(reference.encode_word(symbols, dropout=dropout, rng=rng)) for _ in range(num_draws))
    assert len(theirs) > 4
    distance = sum(abs(ours[spelling] - theirs[spelling]) for spelling in ours | theirs) / 2 / num_draws
    assert distance < 0.1  # two samples of 4,000 from one distribution over a handful of spellings differ by 0.02


@pytest.mark.parametrize("algorithm", ["byte_bpe", "sentencepiece_bpe"])
def test_every_spelling_is_the_text(algorithm: Algorithm, tmp_path: Path, some_texts: list[str]) -> None:
    tokenizer = trained(tmp_path, some_texts, algorithm, reserve=2)
    words = next(text for text in some_texts if "return" in text)[:600]
    text = words + "<|endoftext|>" + words
    drawn = DropoutEncoder(tokenizer, 0.3)
    spellings = {tuple(drawn.encode(text)) for _ in range(10)}
    assert len(spellings) > 3
    plain = tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False)  # SentencePiece adds a space or two
    for ids in spellings:
        assert tokenizer.decode(ids, skip_special_tokens=False) == plain
        assert sum(id in tokenizer.eos_token_ids for id in ids) == 1
    assert DropoutEncoder(tokenizer, 0.0).encode(text) == tokenizer.encode(text)
    bytes_alone = DropoutEncoder(tokenizer, 1.0).encode("words")
    assert [tokenizer.token_bytes(id) for id in bytes_alone if tokenizer.token_bytes(id) != b" "] == [
        *map(bytes, zip(b"words", strict=True))
    ]


def test_what_has_no_merges_or_is_no_probability_is_refused(tmp_path: Path, some_texts: list[str]) -> None:
    tokenizer = trained(tmp_path, some_texts[:5], "unigram", vocab_size=400)
    with pytest.raises(BadRequestError, match="a Unigram vocabulary has none"):
        DropoutEncoder(tokenizer)
    with pytest.raises(BadRequestError, match="must be a probability"):
        DropoutEncoder(tokenizer, 1.5)
