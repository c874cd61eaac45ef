"""The fast encoder has the library's ids, or leaves the text to the library."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers, processors

from wootz.core import BadRequestError
from wootz.tokenization import Tokenizer, fast
from wootz.tokenization.fast import FastEncoder
from wootz.tokenization.pre_tokenizers import Cut, cut_named

FAST = ["gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "deepseek-v3", "tekken", "gpt-4o"]
SLOW = ["deepseek-coder"]
SPECIALS = ["<|im_start|>", "<|im_end|>", "<a1>"]


@pytest.fixture(scope="module")
def model(some_texts: list[str]) -> dict[str, Any]:
    """A vocabulary over words that keep their punctuation, so that every cut matters."""
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    words = pre_tokenizers.Split(tokenizers.Regex(r" ?\S+|\s+"), "isolated")
    trained.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=5000, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(some_texts, trainer)
    return json.loads(trained.to_str())["model"]


def library(model: dict[str, Any], cut: Cut, *added: AddedToken) -> tokenizers.Tokenizer:
    merges = [(left, right) for left, right in model["merges"]]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(model["vocab"], merges, ignore_merges=cut.whole_words_first))
    if cut.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = cut.pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken(text, normalized=False, special=True) for text in SPECIALS])
    backend.add_tokens([*added])
    return backend


def ids_of(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    return backend.encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="module", params=FAST)
def both(request: pytest.FixtureRequest, model: dict[str, Any]) -> tuple[tokenizers.Tokenizer, FastEncoder]:
    backend = library(model, cut_named(request.param))
    encoder = FastEncoder.of(backend)
    assert encoder is not None
    return backend, encoder


odd = st.sampled_from(
    [*"abst'’ſ\n\r\t \u00a0\u3000\u2028\u200b\x8509²٣Ⅷ①中あé\u0301😀👍🏽.,/_<>|-", "  ", "'s", "'LL", *SPECIALS]
)
text = st.lists(st.one_of(odd, odd, st.characters(codec="utf-8"), st.text(st.characters(codec="utf-8")))).map("".join)


@settings(max_examples=40, deadline=None)
@given(text=text)
def test_any_text(both: tuple[tokenizers.Tokenizer, FastEncoder], text: str) -> None:
    has_the_librarys_ids(both, text)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(text=text)
def test_any_text_of_many(both: tuple[tokenizers.Tokenizer, FastEncoder], text: str) -> None:
    has_the_librarys_ids(both, text)


def has_the_librarys_ids(both: tuple[tokenizers.Tokenizer, FastEncoder], text: str) -> None:
    backend, encoder = both
    assert encoder.encode(text) in (ids_of(backend, text), None)


def test_the_corpus_and_little_of_it_is_left_to_the_library(
    both: tuple[tokenizers.Tokenizer, FastEncoder], some_texts: list[str]
) -> None:
    backend, encoder = both
    ours = [encoder.encode(text) for text in some_texts]
    wanted = [ids_of(backend, text) for text in some_texts]
    assert all(ids in (None, want) for ids, want in zip(ours, wanted, strict=True))
    assert ours.count(None) < 0.25 * len(ours)  # the made-up quarter has characters that Unicode added last
    assert encoder.encode_batch(some_texts) == ours


def test_every_character_that_the_library_knows(model: dict[str, Any]) -> None:
    """A plane and a bit of Unicode, each character beside letters, digits, spaces and itself."""
    backend = library(model, cut_named("llama-bpe"))
    encoder = FastEncoder.of(backend)
    assert encoder is not None
    for start in range(0x80, 0x14000, 64):
        block = [chr(code) for code in range(start, start + 64) if not 0xD800 <= code < 0xE000]
        line = "".join(f"a{c}b {c}1{c} {c}.\n" for c in block if c not in fast._unassigned())
        assert encoder.encode(line) == ids_of(backend, line), hex(start)


@pytest.mark.parametrize("name", SLOW)
def test_an_unknown_cut_stays_with_the_library(name: str, model: dict[str, Any], some_texts: list[str]) -> None:
    backend = library(model, cut_named(name))
    assert FastEncoder.of(backend) is None
    tokenizer = Tokenizer(backend, bos_token_id=None, eos_token_ids=(), chat_template=None)
    assert tokenizer.encode(some_texts[0]) == ids_of(backend, some_texts[0])
    assert tokenizer.encode_batch(some_texts[:3]) == [ids_of(backend, text) for text in some_texts[:3]]


@pytest.mark.parametrize(
    "added",
    [
        [AddedToken("word", single_word=True, normalized=False)],
        [AddedToken("nd|>b", normalized=True)],  # overlaps <|im_end|>, and is looked for in a second pass
    ],
)
def test_added_tokens_that_it_would_find_elsewhere_are_refused(added: list[AddedToken], model: dict[str, Any]) -> None:
    assert FastEncoder.of(library(model, cut_named("gpt-2"), *added)) is None


@settings(max_examples=200, deadline=None)
@given(parts=st.lists(st.sampled_from(["<t>", "<t", "think", " ", "\n", "a", "1", "<|im_end|>", "<a1>", "\u3000"])))
def test_added_tokens_that_take_space_or_are_normalised(model: dict[str, Any], parts: list[str]) -> None:
    added = [AddedToken("<t>", lstrip=True, rstrip=True, normalized=False), AddedToken("think", normalized=True)]
    if "encoder" not in model:
        backend = library(model, cut_named("gpt-2"), *added)
        model |= {"encoder": FastEncoder.of(backend), "backend": backend}
    assert model["encoder"].encode("".join(parts)) == ids_of(model["backend"], "".join(parts))


def test_bytes_without_a_token(model: dict[str, Any]) -> None:
    """The library drops such a byte, and its neighbours then meet."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    assert "Ą" in alphabet  # byte 0x04
    lacking = {**model, "vocab": {text: id for text, id in model["vocab"].items() if text not in "Ąñ"}}
    backend = library(lacking, cut_named("gpt-2"))
    encoder = FastEncoder.of(backend)
    assert encoder is not None
    assert encoder.encode("plain text") == ids_of(backend, "plain text")
    assert encoder.encode("th\x04e") is None
    assert encoder.encode("\U00040000") is None
    del lacking["vocab"]["Ģ"]  # a byte inside of common characters
    lacking["merges"] = [pair for pair in lacking["merges"] if "Ģ" not in "".join(pair)]
    lacking["vocab"] = {text: id for text, id in lacking["vocab"].items() if "Ģ" not in text}
    assert FastEncoder.of(library(lacking, cut_named("gpt-2"))) is None


def test_the_word_cache_is_thrown_away_in_time(model: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "RENEW_AFTER", 1000)
    encoder = FastEncoder.of(library(model, cut_named("gpt-2")))
    assert encoder is not None
    caches = []
    for _ in range(30):
        assert encoder.encode("some words again " * 10) is not None
        caches.append(encoder._words)
    assert 3 < len({id(words) for words in caches}) < 10


def test_threads_may_share_it(model: dict[str, Any], some_texts: list[str]) -> None:
    encoder = FastEncoder.of(library(model, cut_named("llama-bpe")))
    assert encoder is not None
    alone = [encoder.encode(text) for text in some_texts]
    with ThreadPoolExecutor(4) as pool:
        assert all(ids == alone for ids in pool.map(lambda _: [encoder.encode(t) for t in some_texts], range(8)))


def test_a_tokenizer_uses_it_and_keeps_its_frame(model: dict[str, Any], some_texts: list[str]) -> None:
    backend = library(model, cut_named("llama-bpe"))
    start, end = (backend.token_to_id(text) for text in SPECIALS[:2])
    backend.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", start), ("<|im_end|>", end)]
    )
    tokenizer = Tokenizer(backend, bos_token_id=None, eos_token_ids=(), chat_template=None)
    assert tokenizer._fast is not None
    texts = ["", "a", "\U00040000 by the library", *some_texts[:20]]
    for text in texts:
        assert tokenizer.encode(text) == backend.encode(text).ids
        assert tokenizer.encode(text, add_special_tokens=False) == ids_of(backend, text)
    assert tokenizer.encode_batch(texts) == [backend.encode(text).ids for text in texts]
    bare = tokenizer.encode_batch(texts, add_special_tokens=False)
    assert bare == [ids_of(backend, text) for text in texts]


def test_lone_surrogates_are_one_clear_error(smollm2: Tokenizer) -> None:
    for text in ("a\ud800", "\udfff", "é\ud834"):
        with pytest.raises(BadRequestError, match="lone surrogate"):
            smollm2.encode(text)
        with pytest.raises(BadRequestError, match="lone surrogate"):
            smollm2.encode_batch(["fine", text])


def test_the_embedded_model_is_fast(smollm2: Tokenizer, texts: list[str]) -> None:
    assert smollm2._fast is not None
    whole = [text for text in texts if "\x04" not in text and max(text) < "\U00032000"]
    assert sum(smollm2._fast.encode(text) is None for text in whole) < 0.2 * len(whole)
