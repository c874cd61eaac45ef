"""GGUF vocabularies against llama.cpp, transformers and sentencepiece: the same ids, on the same files."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import pre_tokenizers, trainers

from wootz.core import ModelFileError, NotFoundError
from wootz.tokenization import Tokenizer, load_tokenizer

from .gguf_files import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, write_gguf
from .llama_cpp import llama_cpp_tokenizer
from .trained_sentencepiece import train_sentencepiece

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def assert_same_ids(ours: Callable[[str], list[int]], theirs: Callable[[str], list[int]], texts: list[str]) -> None:
    different = [text for text in texts if ours(text) != theirs(text)]
    assert not different, f"{len(different)} of {len(texts)} texts, first: {different[0][:200]!r}"


# --- the embedded model ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2_in_transformers(smollm2_gguf: Path) -> Callable[[str], list[int]]:
    """transformers' loader reads the same file, but knows no pre-tokenizer by the name "smollm" and takes GPT-2's.
    SmolLM2 was trained with digits cut apart first, as its tokenizer.json and llama.cpp do."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    return tokenizer.encode


def test_the_corpus_is_two_megabytes_of_many_scripts(texts: list[str]) -> None:
    whole = "".join(texts)
    assert len(whole.encode()) >= 2 * 2**20
    scripts = {unicodedata.name(character, "?").split()[0] for character in set(whole)}
    assert scripts >= {"CJK", "ARABIC", "CYRILLIC", "DEVANAGARI", "HIRAGANA", "HANGUL", "THAI", "GREEK", "EMOJI"}


@pytest.mark.slow
def test_smollm2_ids_equal_llama_cpp(smollm2: Tokenizer, smollm2_gguf: Path, texts: list[str]) -> None:
    with llama_cpp_tokenizer(smollm2_gguf) as theirs:
        assert_same_ids(smollm2.encode, theirs, [*texts, "<|im_start|>user\nhi<|im_end|>\n", "", " ", "<|im_end|"])


def test_smollm2_ids_equal_transformers(
    smollm2: Tokenizer, smollm2_in_transformers: Callable[[str], list[int]], texts: list[str]
) -> None:
    assert_same_ids(smollm2.encode, smollm2_in_transformers, [*texts, "<|im_start|>user\nhi<|im_end|>\n", "", " "])


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder ../shared/data is not here")
def test_smollm2_ids_equal_both_on_real_articles(
    smollm2: Tokenizer, smollm2_gguf: Path, smollm2_in_transformers: Callable[[str], list[int]]
) -> None:
    articles = []
    for file in sorted(SHARED.glob("xquad/xquad.*.json")):
        for document in json.loads(file.read_text())["data"]:
            articles += [paragraph["context"] for paragraph in document["paragraphs"]]
    assert_same_ids(smollm2.encode, smollm2_in_transformers, articles)
    with llama_cpp_tokenizer(smollm2_gguf) as theirs:
        assert_same_ids(smollm2.encode, theirs, articles)


def test_smollm2_text_comes_back(smollm2: Tokenizer, texts: list[str]) -> None:
    # Bytes that SmolLM2's vocabulary has no token for, and drops: five control characters and two of planes 4 to 11.
    missing = {0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xF1, 0xF2}
    whole = [text for text in texts if not missing & set(text.encode())]
    assert len(whole) > 0.95 * len(texts)
    for text in whole:
        assert smollm2.decode(smollm2.encode(text)) == text


def test_smollm2_knows_its_special_tokens(smollm2: Tokenizer) -> None:
    assert smollm2.vocab_size == 49152
    assert smollm2.bos_token_id == 1
    assert smollm2.eos_token_ids == {0, 2}  # <|endoftext|> and <|im_end|>
    assert smollm2.special_ids == set(range(17))
    assert smollm2.decode([1, *smollm2.encode("hi"), 2]) == "hi"
    assert smollm2.decode([1, *smollm2.encode("hi"), 2], skip_special_tokens=False) == "<|im_start|>hi<|im_end|>"


def test_ids_beyond_the_vocabulary_decode_to_nothing(smollm2: Tokenizer) -> None:
    assert smollm2.decode([49152, -1, *smollm2.encode("hi"), 10**9]) == "hi"


# --- byte-level vocabularies, by the name of their pre-tokenizer ----------------------------------------------


@pytest.fixture(scope="module")
def byte_level(some_texts: list[str]) -> tuple[list[str], list[str]]:
    """Tokens and merges trained here, over words that keep their punctuation so that every cut matters."""
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    words = pre_tokenizers.Split(tokenizers.Regex(r" ?\S+|\s+"), "isolated")
    trained.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=5000, special_tokens=["<|end|>", "<tool>"], initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(some_texts, trainer)
    model = json.loads(trained.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [" ".join(pair) for pair in model["merges"]]


def write_byte_level(file: Path, byte_level: tuple[list[str], list[str]], **fields: object) -> Path:
    tokens, merges = byte_level
    types = [CONTROL, USER_DEFINED, *[NORMAL] * (len(tokens) - 2)]
    return write_gguf(file, kind="gpt2", tokens=tokens, types=types, merges=merges, **fields)


@pytest.mark.parametrize(
    "pre",
    [
        *("gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "tekken", "gpt-4o"),
        *("deepseek-v3", "deepseek-coder", "deepseek-llm"),
    ],
)
def test_named_pre_tokenizers_cut_as_llama_cpp_does(
    pre: str, tmp_path: Path, byte_level: tuple[list[str], list[str]], some_texts: list[str]
) -> None:
    file = write_byte_level(tmp_path / "m.gguf", byte_level, pre=pre, bos_token_id=0, eos_token_id=0)
    if pre == "qwen2":  # Qwen2's own tokenizer composes characters first; llama.cpp leaves them as they come
        some_texts = [unicodedata.normalize("NFC", text) for text in some_texts]
    if pre in (
        "tekken",
        "deepseek-coder",
        "gpt-4o",
    ):  # llama.cpp approximates their classes of marks and of wide spaces
        some_texts = [text.encode("ascii", "ignore").decode() for text in some_texts]
    if pre == "deepseek-llm":  # llama.cpp keeps digits together, as the model's vocabulary has no runs of them
        some_texts = [
            re.sub(r"\d+", lambda digits: digits[0][0], text) for text in some_texts[: len(some_texts) * 2 // 3]
        ]
    texts = [*some_texts, "a<tool>b", "1<|end|>2", " <tool> x", "12345 I'LL '12'"]
    texts = texts if pre != "deepseek-llm" else texts[:-1]
    with llama_cpp_tokenizer(file) as theirs:
        assert_same_ids(load_tokenizer(file).encode, theirs, texts)


def test_qwen2_composes_characters_first(tmp_path: Path, byte_level: tuple[list[str], list[str]]) -> None:
    tokenizer = load_tokenizer(write_byte_level(tmp_path / "m.gguf", byte_level, pre="qwen2"))
    assert tokenizer.encode("e\u0301") == tokenizer.encode("\u00e9")


def test_an_unknown_pre_tokenizer_is_refused(tmp_path: Path, byte_level: tuple[list[str], list[str]]) -> None:
    file = write_byte_level(tmp_path / "m.gguf", byte_level, pre="martian")
    with pytest.raises(ModelFileError, match=r'm\.gguf: pre-tokenizer "martian" is not supported .*smollm'):
        load_tokenizer(file)


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("add_eos", [True, False])
def test_document_tokens_follow_the_file(
    add_bos: bool, add_eos: bool, tmp_path: Path, byte_level: tuple[list[str], list[str]]
) -> None:
    flags = {"bos_token_id": 0, "eos_token_id": 1, "add_bos_token": add_bos, "add_eos_token": add_eos}
    tokenizer = load_tokenizer(write_byte_level(tmp_path / "m.gguf", byte_level, pre="llama-bpe", **flags))
    plain = tokenizer.encode("some text", add_special_tokens=False)
    assert tokenizer.encode("some text") == [*[0] * add_bos, *plain, *[1] * add_eos]


def test_every_end_of_turn_marker_ends_an_answer(tmp_path: Path) -> None:
    control = ["<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|eom_id|>", "<|done|>", "<|tool|>"]
    tokens = [*control, "<|end_of_text|>", "a", "aa"]
    types = [*[CONTROL] * len(control), NORMAL, NORMAL, NORMAL]
    ends = {"eos_token_id": 0, "eot_token_id": 5}
    file = write_gguf(tmp_path / "m.gguf", kind="gpt2", tokens=tokens, types=types, merges=["a a"], pre="gpt-2", **ends)
    # <|tool|> is no marker; <|end_of_text|> looks like one but is an ordinary token here, so it is text.
    assert load_tokenizer(file).eos_token_ids == {0, 1, 2, 3, 4, 5}


# --- SentencePiece vocabularies -------------------------------------------------------------------------------


def write_sentencepiece(
    file: Path, model: sentencepiece.SentencePieceProcessor, *, kind: str = "llama", **fields: object
) -> Path:
    ids = range(model.get_piece_size())

    def type_of(id: int) -> int:
        kinds = ((model.is_unknown, UNKNOWN), (model.is_control, CONTROL), (model.is_byte, BYTE))
        return next((kind for holds, kind in kinds if holds(id)), NORMAL)

    return write_gguf(
        file,
        kind=kind,
        tokens=[model.id_to_piece(id) for id in ids],
        types=[type_of(id) for id in ids],
        scores=[model.get_score(id) for id in ids],
        bos_token_id=1,
        eos_token_id=2,
        unknown_token_id=0,
        **fields,
    )


@pytest.fixture(scope="module")
def spm(some_texts: list[str]) -> sentencepiece.SentencePieceProcessor:
    return train_sentencepiece(some_texts, byte_fallback=True)


@pytest.fixture(scope="module")
def spm_gguf(spm: sentencepiece.SentencePieceProcessor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sentencepiece(tmp_path_factory.mktemp("spm") / "spm.gguf", spm)


def test_sentencepiece_ids_and_text_equal_sentencepiece(
    spm: sentencepiece.SentencePieceProcessor, spm_gguf: Path, texts: list[str]
) -> None:
    tokenizer = load_tokenizer(spm_gguf)
    edges = ["", " ", "  ", " a", "a ", "▁a", "<0x41>", "a" * 999, "-" * 999, " " * 999, "\n\n", "🏴‍☠️"]
    assert_same_ids(tokenizer.encode, lambda text: [1, *spm.encode(text)], [*texts, *edges])
    for text in (*texts[::10], *edges):
        ids = spm.encode(text)
        assert tokenizer.decode(ids) == spm.decode(ids)


def test_sentencepiece_ids_equal_llama_cpp(spm_gguf: Path, some_texts: list[str]) -> None:
    chat = ["<s>[INST] hi [/INST] yes </s><s>[INST] and? [/INST]", "<s> a</s> <s>", "</s>x"]
    with llama_cpp_tokenizer(spm_gguf) as theirs:
        assert_same_ids(load_tokenizer(spm_gguf).encode, theirs, [*some_texts, *chat])


def test_sentencepiece_without_a_prefix_space(tmp_path: Path, some_texts: list[str]) -> None:
    model = train_sentencepiece(some_texts, byte_fallback=True, add_dummy_prefix=False)
    file = write_sentencepiece(tmp_path / "m.gguf", model, add_space_prefix=False, add_bos_token=False)
    tokenizer = load_tokenizer(file)
    assert_same_ids(tokenizer.encode, model.encode, [*some_texts, " a", "a"])
    assert tokenizer.decode(tokenizer.encode(" a")) == " a"


def test_sentencepiece_without_bytes_has_an_unknown_token(tmp_path: Path, some_texts: list[str]) -> None:
    model = train_sentencepiece(some_texts)
    tokenizer = load_tokenizer(write_sentencepiece(tmp_path / "m.gguf", model, add_bos_token=False))
    assert 0 in tokenizer.encode("a\U000f0000\U000f0000b")
    assert_same_ids(tokenizer.encode, model.encode, some_texts)


@pytest.mark.parametrize("bytes_too", [False, True])
def test_unigram_ids_equal_sentencepiece_and_llama_cpp(tmp_path: Path, some_texts: list[str], bytes_too: bool) -> None:
    model = train_sentencepiece(some_texts, "unigram", byte_fallback=bytes_too)
    file = write_sentencepiece(tmp_path / "m.gguf", model, kind="t5", add_space_prefix=True)
    tokenizer = load_tokenizer(file)
    texts = [*some_texts, "a  b ", " ", "naïve\U000f0000\U000f0000"]
    assert_same_ids(tokenizer.encode, lambda text: [*model.encode(text), 2], texts)
    for text in texts[::10]:
        ids = model.encode(text)
        if 0 not in ids:  # which sentencepiece writes as " ⁇ "
            assert tokenizer.decode(ids) == model.decode(ids)
    if not bytes_too:  # llama.cpp writes no bytes here
        with llama_cpp_tokenizer(file) as theirs:
            assert_same_ids(tokenizer.encode, theirs, [*texts[:-2], "a</s>b"])


def test_unigram_folds_characters_and_spaces_as_sentencepiece_does(tmp_path: Path, some_texts: list[str]) -> None:
    """T5's own way: NFKC by SentencePiece's tables, runs of spaces made one, none at the ends. (In the made-up texts,
    the library loses marks behind characters that the tables replace.)"""
    model = train_sentencepiece(
        some_texts, "unigram", normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True
    )
    spec = sentencepiece_model_pb2.ModelProto.FromString(model.serialized_model_proto()).normalizer_spec
    charsmap = np.frombuffer(spec.precompiled_charsmap, dtype=np.uint8)
    options = {"add_space_prefix": True, "remove_extra_whitespaces": True, "precompiled_charsmap": charsmap}
    file = write_sentencepiece(tmp_path / "m.gguf", model, kind="t5", **options)
    texts = [*some_texts[: len(some_texts) * 2 // 3], "  two  spaces ", "", " ", "ﬁ ① Ⅷ\u3000x"]
    tokenizer = load_tokenizer(file)
    assert_same_ids(tokenizer.encode, lambda text: [*model.encode(text), 2], texts)
    with llama_cpp_tokenizer(file) as theirs:
        assert_same_ids(tokenizer.encode, theirs, texts)


# --- files that are not what they should be -------------------------------------------------------------------


def test_a_file_cut_anywhere_is_one_clear_error(spm_gguf: Path, tmp_path: Path) -> None:
    whole = spm_gguf.read_bytes()
    file = tmp_path / "cut.gguf"
    for length in (0, 3, 4, 20, 24, 30, *range(100, 40_000, 997)):
        file.write_bytes(whole[:length])
        with pytest.raises(ModelFileError) as caught:
            load_tokenizer(file)
        assert str(file) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_no_file_no_gguf_no_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such model folder or GGUF file"):
        load_tokenizer(tmp_path / "absent.gguf")
    (tmp_path / "text.gguf").write_text("hello " * 100)
    with pytest.raises(ModelFileError, match="not a GGUF file"):
        load_tokenizer(tmp_path / "text.gguf")
    (tmp_path / "old.gguf").write_bytes(b"GGUF\x01" + bytes(100))
    with pytest.raises(ModelFileError, match="GGUF version 1"):
        load_tokenizer(tmp_path / "old.gguf")
    file = write_gguf(tmp_path / "bert.gguf", kind="bert", tokens=["a"], types=[NORMAL])
    with pytest.raises(ModelFileError, match='of kind "bert" are not supported'):
        load_tokenizer(file)
    file = write_gguf(tmp_path / "nomerges.gguf", kind="gpt2", tokens=["a"], types=[NORMAL], pre="gpt-2")
    with pytest.raises(ModelFileError, match=r"holds no tokenizer\.ggml\.merges"):
        load_tokenizer(file)


@pytest.mark.parametrize(
    "wrong", [{"bos_token_id": 99}, {"merges": ["a zz"]}, {"types": [NORMAL]}, {"chat_template": "{% if %}"}]
)
def test_a_vocabulary_that_contradicts_itself_is_refused(wrong: dict, tmp_path: Path) -> None:
    right = {"tokens": ["a", "b", "ab"], "types": [NORMAL] * 3, "merges": ["a b"], "pre": "llama-bpe"}
    load_tokenizer(write_gguf(tmp_path / "right.gguf", kind="gpt2", **right))
    with pytest.raises(ModelFileError, match=r"wrong\.gguf: "):
        load_tokenizer(write_gguf(tmp_path / "wrong.gguf", kind="gpt2", **(right | wrong)))
