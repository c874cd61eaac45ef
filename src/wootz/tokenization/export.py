"""A tokenizer from one kind of model file into the other, so that a converted model keeps its own.

- `gguf_vocabulary`: a folder's tokenizer as the metadata that GGUF files hold. Of a byte-level BPE, GGUF names how text
  is cut into words instead of describing it, so the description in ``tokenizer.json`` must be one that has a name. Of a
  SentencePiece vocabulary it holds a score for each piece, so the merges must be those that scores stand for.
- `tokenizer_files`: the vocabulary of a GGUF file, of any kind we read, as the files of a model folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wootz.core.errors import ModelFileError
from wootz.core.gguf import GGUFFile
from wootz.tokenization.gguf_vocabulary import TokenType, load_gguf_tokenizer
from wootz.tokenization.load import load_tokenizer
from wootz.tokenization.pre_tokenizers import cut_named
from wootz.tokenization.sentencepiece_export import sentencepiece_metadata

_CUT_NAMES = (
    "gpt-2",
    "smollm",
    "llama-bpe",
    "dbrx",
    "qwen2",
    "tekken",
    "deepseek-coder",
    "deepseek-llm",
    "deepseek-v3",
)
"""One name for each way to cut, which llama.cpp knows too."""

_ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def gguf_vocabulary(folder: Path | str) -> dict[str, Any]:
    """The ``tokenizer.*`` metadata of a model folder's tokenizer.

    Raises `ModelFileError` for tokenizers that GGUF cannot describe.
    """
    folder = Path(folder)
    tokenizer = load_tokenizer(folder)
    raw = json.loads(tokenizer._backend.to_str())
    tokens, types = _tokens(raw, _embedding_rows(folder))
    try:
        if any(step["type"] == "ByteLevel" for step in _steps(raw["pre_tokenizer"])):
            metadata = _byte_level(raw)
        else:
            metadata = sentencepiece_metadata(raw, tokens, types)
    except ModelFileError as error:
        raise ModelFileError(f"{folder / 'tokenizer.json'}: {error.message}") from None
    metadata |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [int(type) for type in types]}
    ids = {text: id for id, text in enumerate(tokens)}
    config = _read(folder / "special_tokens_map.json") | _read(folder / "tokenizer_config.json")
    for role, key in _ROLES.items():
        text = config.get(role)
        text = text.get("content") if isinstance(text, dict) else text
        if text in ids:
            metadata[f"tokenizer.ggml.{key}_token_id"] = ids[text]
    bos, eos = (metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("bos", "eos"))
    if eos is None and tokenizer.eos_token_ids:
        metadata["tokenizer.ggml.eos_token_id"] = eos = min(tokenizer.eos_token_ids)
    if others := tokenizer.eos_token_ids - {eos}:
        metadata["tokenizer.ggml.eot_token_id"] = min(others)
    around_nothing = tokenizer.encode("")
    metadata["tokenizer.ggml.add_bos_token"] = bos is not None and around_nothing[:1] == [bos]
    metadata["tokenizer.ggml.add_eos_token"] = eos is not None and around_nothing[-1:] == [eos]
    if tokenizer.chat_template is not None:
        metadata["tokenizer.chat_template"] = tokenizer.chat_template.source
    return metadata


def _byte_level(raw: dict[str, Any]) -> dict[str, Any]:
    if raw["model"]["type"] != "BPE":
        raise ModelFileError(f"a byte-level {raw['model']['type']} cannot be written to GGUF")
    cut = _name_of_cut(raw)
    if cut is None:
        raise ModelFileError("cuts text into words in a way that GGUF has no name for")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in raw["model"]["merges"]]
    return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": cut, "tokenizer.ggml.merges": merges}


def tokenizer_files(gguf: Path | str) -> dict[str, bytes]:
    """``tokenizer.json``, ``tokenizer_config.json`` and ``generation_config.json`` of a GGUF file's vocabulary."""
    tokenizer = load_gguf_tokenizer(Path(gguf))
    metadata = GGUFFile(gguf).metadata
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for role, key in _ROLES.items():
        if (id := metadata.get(f"tokenizer.ggml.{key}_token_id")) is not None:
            config[role] = tokens[id]
    if tokenizer.chat_template is not None:
        config["chat_template"] = tokenizer.chat_template.source
    generation: dict[str, Any] = {"eos_token_id": sorted(tokenizer.eos_token_ids)}
    if tokenizer.bos_token_id is not None:
        generation["bos_token_id"] = tokenizer.bos_token_id
    return {
        "tokenizer.json": tokenizer._backend.to_str().encode(),
        "tokenizer_config.json": _json(config),
        "generation_config.json": _json(generation),
    }


def _tokens(raw: dict[str, Any], num_rows: int) -> tuple[list[str], list[TokenType]]:
    """Texts and types by id; ids without a token, up to the embedding's rows, are filled with unused ones."""
    vocabulary = raw["model"]["vocab"]
    texts = [text for text, _ in vocabulary] if isinstance(vocabulary, list) else sorted(vocabulary, key=vocabulary.get)
    ids = range(len(texts)) if isinstance(vocabulary, list) else [vocabulary[text] for text in texts]
    by_id = {id: (text, TokenType.NORMAL) for id, text in zip(ids, texts, strict=True)}
    for token in raw["added_tokens"]:
        by_id[token["id"]] = (token["content"], TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED)
    count = max(num_rows, max(by_id) + 1)
    entries = [by_id.get(id, (f"[PAD{id}]", TokenType.UNUSED)) for id in range(count)]
    return [text for text, _ in entries], [type for _, type in entries]


def _embedding_rows(folder: Path) -> int:
    return _read(folder / "config.json").get("vocab_size") or 0


def _name_of_cut(raw: dict[str, Any]) -> str | None:
    wanted = _description(raw["pre_tokenizer"])
    nfc = (raw.get("normalizer") or {}).get("type") == "NFC"
    if raw.get("normalizer") and not nfc:
        return None
    for name in _CUT_NAMES:
        cut = cut_named(name)
        made = json.loads(cut.pre_tokenizer().__getstate__())
        same = _description(made) == wanted and cut.nfc == nfc
        if same and cut.whole_words_first == bool(raw["model"].get("ignore_merges")):
            return name
    return None


def _description(pre_tokenizer: dict[str, Any]) -> list[tuple[Any, ...]]:
    """What matters of each step, in order."""
    matters = ("type", "pattern", "behavior", "invert", "individual_digits", "add_prefix_space", "use_regex")
    return [tuple(step.get(key) for key in matters) for step in _steps(pre_tokenizer)]


def _steps(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    if pre_tokenizer is None:
        return []
    return pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_bytes()) if file.is_file() else {}


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
