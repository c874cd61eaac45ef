"""Trained vocabularies: the merges of the `tokenizers` library, folders that everybody reads, files that convert."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiktoken.load
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers, trainers

from wootz.core import BadRequestError, ModelFileError, NotFoundError
from wootz.tokenization import load_tokenizer
from wootz.tokenization.byte_tokenizer import ByteTokenizer
from wootz.tokenization.load import load_tiktoken
from wootz.tokenization.pre_tokenizers import PATTERNS
from wootz.tokenization.ranks import (
    ENCODINGS,
    Encoding,
    merge_by_rank,
    merges_of,
    ranks_of,
    read_tiktoken,
    write_tiktoken,
)
from wootz.tokenization.train import FIM_TOKENS, Algorithm, train_tokenizer, write_tokenizer

unicode_text = st.text(st.characters(codec="utf-8"))


@pytest.fixture(scope="module")
def byte_bpe(some_texts: list[str]) -> tokenizers.Tokenizer:
    return train_tokenizer(some_texts, vocab_size=3000, special_tokens=["<|endoftext|>", *FIM_TOKENS], reserve=8)


@pytest.mark.parametrize("pattern", ["gpt2", "o200k", "code"])
def test_byte_level_merges_equal_the_librarys(pattern: str, some_texts: list[str]) -> None:
    """The library breaks ties by ids, which it gives to characters in their order: for the same ties each byte is
    spelled as a character in the order of bytes."""
    some_texts = some_texts[::2]
    ours = ranks_of(train_tokenizer(some_texts, vocab_size=2000, pattern=pattern, special_tokens=()))
    spelled = [chr(0x4E00 + byte) for byte in range(256)]
    words = pre_tokenizers.Split(tokenizers.Regex(PATTERNS[pattern]), "isolated")
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.Split("\n", "removed")
    cut = ([word for word, _ in words.pre_tokenize_str(text)] for text in some_texts)
    lines = ("\n".join("".join(spelled[byte] for byte in word.encode()) for word in text) for text in cut)
    trainer = trainers.BpeTrainer(vocab_size=2000, initial_alphabet=spelled, show_progress=False)
    theirs.train_from_iterator(lines, trainer)
    wanted = {bytes(ord(c) - 0x4E00 for c in text): id for text, id in theirs.get_vocab().items()}
    assert ours == wanted


def test_the_size_holds_bytes_merges_special_and_reserved_tokens(byte_bpe: tokenizers.Tokenizer) -> None:
    assert byte_bpe.get_vocab_size() == 3000
    vocabulary = byte_bpe.get_vocab()
    assert sorted(vocabulary.values()) == list(range(3000))
    assert vocabulary["<|reserved_special_token_7|>"] == 2999
    assert [vocabulary[text] for text in FIM_TOKENS] == [2989, 2990, 2991]
    assert byte_bpe.encode("a<|fim_middle|>b").ids.count(2990) == 1


@pytest.mark.parametrize("algorithm", ["byte_bpe", "sentencepiece_bpe", "unigram", "wordpiece"])
def test_folders_are_read_the_same_by_transformers(algorithm: Algorithm, tmp_path: Path, some_texts: list[str]) -> None:
    transformers = pytest.importorskip("transformers")
    texts = [text[:2000] for text in some_texts[:60:3]]
    special = ["[CLS]", "[UNK]", "[END]"] if algorithm == "wordpiece" else ["<|endoftext|>"]
    backend = train_tokenizer(texts, algorithm, vocab_size=1200, special_tokens=special, reserve=2)
    write_tokenizer(backend, tmp_path, roles={"eos_token": special[-1]}, chat_template="{{ eos_token }}")
    ours, theirs = load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert backend.get_vocab_size() == 1200 == ours.vocab_size
    assert ours.eos_token_ids == {theirs.eos_token_id}
    for text in some_texts:
        assert ours.encode(text) == theirs.encode(text)
        if algorithm == "byte_bpe":
            assert ours.decode(ours.encode(text)) == text
    assert ours.encode_chat([]) == [theirs.eos_token_id]


@pytest.mark.parametrize("algorithm", ["sentencepiece_bpe", "unigram"])
def test_what_sentencepiece_keeps(algorithm: Algorithm, tmp_path: Path) -> None:
    """Spaces, also many and in front, and characters never seen. Not kept: "▁", which is how a space is spelled, and
    with NFKC the forms of characters."""
    texts = ["some words and some spaces, words of words " * 20, "et cetera, and so on and so on " * 20]
    write_tokenizer(train_tokenizer(texts, algorithm, vocab_size=330), tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    for text in ("words", "  words   and ", "", " ", "\n\t", "世界 🌍", "cafe\u0301 ﬁ"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode("a▁b")) == "a b"
    write_tokenizer(train_tokenizer(texts, algorithm, vocab_size=330, nfkc=True), tmp_path)
    assert load_tokenizer(tmp_path).decode(load_tokenizer(tmp_path).encode("cafe\u0301 ﬁ")) == "café fi"


def test_indentation_is_one_token_in_a_code_vocabulary(texts: list[str]) -> None:
    code = [text for text in texts if "def " in text and "return" in text]
    prose = [text for text in texts if "def " not in text]
    made_for = {
        "code": train_tokenizer(code[:40], vocab_size=4000, pattern="code"),
        "prose": train_tokenizer(prose[:100], vocab_size=4000, pattern="cl100k"),
    }
    for indentation in ("    ", "        ", "            "):
        words = made_for["code"].encode(f"\n{indentation}return").tokens
        assert words[-2] == "Ġ" * len(indentation)
    length = {name: sum(len(trained.encode(text).ids) for text in code[40:]) for name, trained in made_for.items()}
    assert length["code"] < 0.8 * length["prose"]


def test_a_run_of_tabs_is_one_token_in_a_code_vocabulary() -> None:
    """Go and makefiles indent by tabs: a run is a word by itself, of any length that training saw, and the word behind
    it is the word that it is elsewhere."""
    depths = [f"func f{n}() {{\n" + "".join(f"{chr(9) * depth}return x\n" for depth in (1, 2, 3, 4)) for n in range(50)]
    code, plain = (train_tokenizer(depths, vocab_size=400, pattern=pattern) for pattern in ("code", "cl100k"))
    for depth in (1, 2, 3, 4):
        tokens = code.encode("{\n" + "\t" * depth + "return x").tokens
        assert tokens[-3:] == ["ĉ" * depth, "return", "Ġx"]
        assert code.decode(code.encode("\t" * depth + "x\t\ty").ids) == "\t" * depth + "x\t\ty"
    assert plain.encode("{\n\t\treturn x").tokens[-3:] == ["ĉ", "ĉreturn", "Ġx"]


@settings(deadline=None)
@given(text=unicode_text)
def test_any_text_comes_back_and_nothing_crosses_a_word(byte_bpe: tokenizers.Tokenizer, text: str) -> None:
    assert byte_bpe.decode(byte_bpe.encode(text).ids, skip_special_tokens=False) == text
    words = pre_tokenizers.Split(tokenizers.Regex(PATTERNS["cl100k"]), "isolated").pre_tokenize_str(text)
    by_word = [id for word, _ in words for id in byte_bpe.encode(word).ids]
    assert byte_bpe.encode(text).ids == by_word


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"vocab_size": 200}, "no room"),
        ({"vocab_size": 300, "reserve": 50}, "no room"),
        ({"vocab_size": 500, "pattern": "(["}, "neither a regex"),
        ({"vocab_size": 500, "special_tokens": ["<s>", "<s>"]}, "same text"),
    ],
)
def test_what_cannot_be_trained_is_one_clear_error(options: dict[str, Any], says: str) -> None:
    with pytest.raises(BadRequestError, match=says):
        train_tokenizer(["a text"], **options)


def test_a_role_must_be_a_token(byte_bpe: tokenizers.Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(BadRequestError, match=r'eos_token: .* no token "</s>"'):
        write_tokenizer(byte_bpe, tmp_path, roles={"eos_token": "</s>"})


# --- tiktoken's files -----------------------------------------------------------------------------------------


def test_ranks_written_are_read_by_tiktoken_and_by_us(
    byte_bpe: tokenizers.Tokenizer, tmp_path: Path, texts: list[str]
) -> None:
    file = tmp_path / "mine.tiktoken"
    write_tiktoken(byte_bpe, file)
    special = {token.content: id for id, token in byte_bpe.get_added_tokens_decoder().items()}
    load = tiktoken.load.load_tiktoken_bpe(str(file))
    theirs = tiktoken.Encoding("mine", pat_str=PATTERNS["cl100k"], mergeable_ranks=load, special_tokens=special)
    ours = load_tiktoken(file, Encoding("cl100k", special, "<|endoftext|>"))
    for text in [*texts[::5], "<|fim_prefix|>a<|endoftext|>"]:
        ids = byte_bpe.encode(text).ids
        assert ours.encode(text) == ids
        assert theirs.encode(text, allowed_special="all") == ids
    assert ours.eos_token_ids == {theirs.eot_token}


def test_merges_and_ranks_are_two_spellings_of_one_vocabulary(byte_bpe: tokenizers.Tokenizer) -> None:
    ranks = ranks_of(byte_bpe)
    merges = json.loads(byte_bpe.to_str())["model"]["merges"]
    assert len(merges_of(ranks)) == len(merges) == len(ranks) - 256
    assert all(merge_by_rank(token, ranks) == [token] for token in [*ranks][::20])


def test_vocabularies_that_are_no_ranks(some_texts: list[str], tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="only a byte-level BPE has ranks"):
        write_tiktoken(train_tokenizer(some_texts[:9], "sentencepiece_bpe", vocab_size=500), tmp_path / "x")
    alphabet = {text: id for id, text in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    ab, bc, abc = {"ab": 256}, {"bc": 257}, {"abc": 256}
    swapped = [("b", "c"), ("a", "b")]
    for more, merges, says in (abc, [], "not made by merging"), (ab | bc, swapped, "not in the order"):
        backend = tokenizers.Tokenizer(tokenizers.models.BPE(alphabet | more, merges))
        backend.decoder = tokenizers.decoders.ByteLevel()
        with pytest.raises(ModelFileError, match=says):
            write_tiktoken(backend, tmp_path / "x")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "holds no tokens"),
        ("YQ== 0\nYg== 0\n", "two tokens have one rank"),
        ("YQ== 0\nYg==\n", 'line 2: not "BASE64 RANK"'),
        ("YQ== 0\n!! 1\n", "line 2"),
        ("YQ== zero\n", "line 1"),
    ],
)
def test_a_broken_file_of_ranks(content: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "r50k_base.tiktoken"
    file.write_text(content)
    with pytest.raises(ModelFileError, match=says):
        load_tokenizer(file)


def test_a_file_of_ranks_with_an_unknown_name(tmp_path: Path) -> None:
    file = tmp_path / "martian.tiktoken"
    file.write_text("YQ== 0\n")
    with pytest.raises(ModelFileError, match=r'how "martian" cuts words \(known by name: r50k_base'):
        load_tokenizer(file)
    with pytest.raises(NotFoundError):
        load_tiktoken(tmp_path / "absent.tiktoken")
    with pytest.raises(ModelFileError, match=r"id of <\|endoftext\|> is taken"):
        load_tiktoken(file, Encoding("gpt2", {"<|endoftext|>": 0}, "<|endoftext|>"))
    assert read_tiktoken(file) == {b"a": 0}
    assert ENCODINGS["gpt2"] is ENCODINGS["r50k_base"]


# --- no vocabulary at all -------------------------------------------------------------------------------------


@settings(deadline=None)
@given(text=unicode_text)
def test_bytes_equal_byt5(text: str) -> None:
    transformers = pytest.importorskip("transformers")
    ours, theirs = ByteTokenizer(), transformers.ByT5Tokenizer(extra_ids=0)
    written = text.replace("<", "").replace("\x00", "")  # theirs parses "</s>" where a text spells it
    assert ours.encode(written) == theirs.encode(written)
    ids = ours.encode(text)
    assert ours.decode(ids) == text
    assert max(ids) < ours.vocab_size == 259
