"""A SentencePiece vocabulary, out of the way ``tokenizer.json`` describes it, as GGUF describes it: a score per piece.

A BPE's merges are ranked pairs there and pieces with scores here. That is the same only if every way to cut a piece in
two pieces is a merge, as it is in what was made from a SentencePiece model (and by `train_tokenizer`); merges that no
scores stand for are refused, since they would tokenise differently in silence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from wootz.core.errors import ModelFileError
from wootz.tokenization.gguf_vocabulary import TokenType, merges_by_score

_BYTE = re.compile("<0x[0-9A-F]{2}>")
_EXTRA_SPACES = ({"Regex": " {2,}"}, {"Regex": "^ +| +$"})


def sentencepiece_metadata(raw: dict[str, Any], tokens: Sequence[str], types: list[TokenType]) -> dict[str, Any]:
    """``raw`` is a ``tokenizer.json``. Marks in ``types`` which tokens are bytes and which is the unknown one.

    Raises `ModelFileError` for what GGUF cannot describe."""
    model = raw["model"]
    if model["type"] not in ("BPE", "Unigram"):
        raise ModelFileError(f"a {model['type']} vocabulary cannot be written to GGUF")
    metadata = _spaces(raw, tokens)
    unknown = (
        model["unk_id"]
        if model["type"] == "Unigram"
        else (tokens.index(model["unk_token"]) if model["unk_token"] else None)
    )
    if unknown is not None:
        types[unknown] = TokenType.UNKNOWN
        metadata["tokenizer.ggml.unknown_token_id"] = unknown
    if model["byte_fallback"]:
        for id, text in enumerate(tokens):
            if _BYTE.fullmatch(text):
                types[id] = TokenType.BYTE
    if model["type"] == "Unigram":
        scores = [score for _, score in model["vocab"]]
        scores += [0.0] * (len(tokens) - len(scores))
        return metadata | {"tokenizer.ggml.model": "t5", "tokenizer.ggml.scores": scores}
    if metadata.pop("tokenizer.ggml.remove_extra_whitespaces"):
        raise ModelFileError("normalises text before it merges, which GGUF has no word for")
    return metadata | {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": _scores(model, tokens, types)}


def _scores(model: dict[str, Any], tokens: Sequence[str], types: Sequence[TokenType]) -> list[float]:
    """The earlier a piece is made, the better; what no merge makes comes last."""
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    made: dict[str, float] = {}
    for left, right in pairs:
        made.setdefault(left + right, -1.0 - len(made))
    scores = [made.get(text, -1.0 - len(made)) for text in tokens]
    mergeable = (TokenType.NORMAL, TokenType.USER_DEFINED)
    pieces = {text: score for text, score, type in zip(tokens, scores, types, strict=True) if type in mergeable}
    if {*merges_by_score(pieces)} != {*pairs}:
        raise ModelFileError("its merges are not those that scores of pieces stand for, which is all that GGUF holds")
    return scores


def _spaces(raw: dict[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    """What is done to a text before it is cut into pieces."""
    metadata: dict[str, Any] = {"tokenizer.ggml.add_space_prefix": False}
    metadata["tokenizer.ggml.remove_extra_whitespaces"] = False
    replaced = False
    for step in _steps(raw["normalizer"], "normalizers"):
        match step:
            case {"type": "Prepend", "prepend": "▁"}:
                metadata["tokenizer.ggml.add_space_prefix"] = True
            case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
                replaced = True
            case {"type": "Replace", "pattern": pattern} if pattern in _EXTRA_SPACES:
                metadata["tokenizer.ggml.remove_extra_whitespaces"] = True
            case _:
                raise ModelFileError(f"normalises text in a way that GGUF has no word for ({step['type']})")
    for step in _steps(raw["pre_tokenizer"], "pretokenizers"):
        match step:
            # The schemes that put a space before a text leave out one that starts with a space, which GGUF's does not.
            case {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": split}:
                if split and any("▁" in text[1:] for text in tokens):
                    raise ModelFileError("cuts text into words, but has pieces of several, which GGUF has no word for")
                replaced = True
            case {"type": "Split", "pattern": {"String": " "}} if replaced:
                pass  # there are no spaces left
            case {"type": kind}:
                raise ModelFileError(f"cuts text into words in a way that GGUF has no name for ({kind})")
    if not replaced:
        raise ModelFileError("neither a byte-level nor a SentencePiece vocabulary, so it cannot be written to GGUF")
    return metadata


def _steps(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    return [] if part is None else part[key] if part["type"] == "Sequence" else [part]
