"""SentencePiece vocabularies written to GGUF: llama.cpp and we read back the ids of the folder they came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, normalizers

from wootz.core import ModelFileError
from wootz.tokenization import load_tokenizer
from wootz.tokenization.export import gguf_vocabulary, tokenizer_files
from wootz.tokenization.train import train_tokenizer, write_tokenizer

from .gguf_files import write_gguf
from .llama_cpp import llama_cpp_tokenizer
from .test_gguf_tokenizer import assert_same_ids
from .trained_sentencepiece import train_sentencepiece


def as_gguf(folder: Path, file: Path) -> Path:
    vocabulary = gguf_vocabulary(folder)
    fields = {key.removeprefix("tokenizer.ggml."): value for key, value in vocabulary.items()}
    named = {"kind": fields.pop("model"), "tokens": fields.pop("tokens"), "types": fields.pop("token_type")}
    return write_gguf(file, **named, **fields)


@pytest.mark.parametrize("kind", ["trained here", "trained by sentencepiece", "unigram"])
def test_ids_survive_the_way_to_gguf_and_back(kind: str, tmp_path: Path, some_texts: list[str]) -> None:
    folder = tmp_path / "folder"
    if kind == "trained by sentencepiece":
        transformers = pytest.importorskip("transformers")
        (tmp_path / "tokenizer.model").write_bytes(
            train_sentencepiece(some_texts, byte_fallback=True).serialized_model_proto()
        )
        transformers.LlamaTokenizer.from_pretrained(tmp_path).save_pretrained(folder)
        raw = json.loads((folder / "tokenizer.json").read_text())  # spaces as in the published files of Llama 2
        steps = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
        raw |= {"normalizer": {"type": "Sequence", "normalizers": steps}, "pre_tokenizer": None}
        (folder / "tokenizer.json").write_text(json.dumps(raw))
    else:
        algorithm = "unigram" if kind == "unigram" else "sentencepiece_bpe"
        texts = [text[:1500] for text in some_texts[::3]]
        backend = train_tokenizer(texts, algorithm, vocab_size=2000, special_tokens=["<s>", "</s>"])
        write_tokenizer(backend, folder, roles={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    original = load_tokenizer(folder)
    file = as_gguf(folder, tmp_path / "m.gguf")
    texts = [*some_texts, "", " ", "  a  b ", "<0x41>", "\n\n\t世界 🌍"]
    assert_same_ids(load_tokenizer(file).encode, original.encode, texts)
    if kind != "unigram":  # of a character without a piece, llama.cpp writes no bytes in a unigram vocabulary
        with llama_cpp_tokenizer(file) as theirs:
            assert_same_ids(original.encode, theirs, [*texts[1:], "<s>a</s>"])
    (tmp_path / "back").mkdir()
    for name, content in tokenizer_files(file).items():
        (tmp_path / "back" / name).write_bytes(content)
    back = load_tokenizer(tmp_path / "back")
    assert_same_ids(back.encode, original.encode, texts)
    assert (back.bos_token_id, back.eos_token_ids) == (original.bos_token_id, original.eos_token_ids)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"normalizer": {"type": "NFKC"}}, r"normalises text in a way that GGUF has no word for \(NFKC\)"),
        ({"normalizer": None}, "neither a byte-level nor a SentencePiece"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, r"no name for \(Whitespace\)"),
        (
            {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False}},
            r"no name for \(Metaspace\)",
        ),
    ],
)
def test_what_gguf_cannot_say_is_refused(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    write_tokenizer(train_tokenizer(["some words and words"], "sentencepiece_bpe", vocab_size=280), tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ModelFileError, match=says):
        gguf_vocabulary(tmp_path)


def test_merges_that_no_scores_stand_for_are_refused(tmp_path: Path) -> None:
    """ "abc" out of "ab" and "c" alone: with scores, "a" and "bc" would make it, too."""
    texts = {text: id for id, text in enumerate(["<unk>", "a", "b", "c", "ab", "bc", "abc", "▁"])}
    backend = tokenizers.Tokenizer(models.BPE(texts, [("b", "c"), ("a", "b"), ("ab", "c")], unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = tokenizers.decoders.Metaspace(prepend_scheme="never")
    write_tokenizer(backend, tmp_path)
    with pytest.raises(ModelFileError, match="merges are not those that scores of pieces stand for"):
        gguf_vocabulary(tmp_path)
