"""A tokenizer out of the vocabulary in a GGUF file.

The file holds the tokens in id order with a type each, and either the merges of a byte-level BPE (kind ``gpt2``) or
the scores of a SentencePiece vocabulary: a BPE's (kind ``llama``) or a unigram model's (kind ``t5``). Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, normalizers, processors
from tokenizers.models import BPE, Unigram

from wootz.core.errors import ModelFileError
from wootz.core.gguf import GGUFFile
from wootz.tokenization.chat_template import ChatTemplate
from wootz.tokenization.pre_tokenizers import cut_named
from wootz.tokenization.tokenizer import Tokenizer

END_MARKERS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>")
"""Control tokens that end an answer wherever they exist; files often name only one of them as their end token."""


class TokenType(IntEnum):
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def load_gguf_tokenizer(file: Path) -> Tokenizer:
    """Raises `ModelFileError` when the file is no GGUF or its vocabulary is of a kind we can't build."""
    metadata = GGUFFile(file).metadata
    try:
        return _build(metadata)
    except ModelFileError as error:
        raise ModelFileError(f"{file}: {error.message}") from None
    except KeyError as error:
        raise ModelFileError(f"{file}: holds no {error.args[0]}") from None
    except Exception as error:  # lists of unequal length, ids out of range, merges of unknown tokens
        raise ModelFileError(f"{file}: broken vocabulary ({error})") from None


def _build(metadata: dict[str, Any]) -> Tokenizer:
    ggml = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    kind = metadata["tokenizer.ggml.model"]
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    types: list[int] = ggml.get("token_type") or [TokenType.NORMAL] * len(tokens)

    if kind == "gpt2":
        backend, adds_bos = _byte_level_bpe(tokens, metadata["tokenizer.ggml.merges"], ggml.get("pre", "default"))
    elif kind == "llama":
        backend = _sentencepiece_bpe(
            tokens, types, metadata["tokenizer.ggml.scores"], ggml.get("add_space_prefix", True)
        )
        adds_bos = True
    elif kind == "t5":
        backend, adds_bos = _unigram(tokens, types, metadata["tokenizer.ggml.scores"], ggml), False
    else:
        raise ModelFileError(f'vocabularies of kind "{kind}" are not supported ("gpt2", "llama" and "t5" are)')

    special = {TokenType.CONTROL, TokenType.UNKNOWN}
    backend.add_tokens(
        [
            AddedToken(text, normalized=False, special=type in special)
            for text, type in zip(tokens, types, strict=True)
            if type in special or type == TokenType.USER_DEFINED
        ]
    )
    bos, eos = ggml.get("bos_token_id"), ggml.get("eos_token_id")
    before = [bos] if ggml.get("add_bos_token", adds_bos) and bos is not None else []
    after = [eos] if ggml.get("add_eos_token", kind == "t5") and eos is not None else []
    if before or after:
        backend.post_processor = processors.TemplateProcessing(
            single=[*(tokens[id] for id in before), "$A", *(tokens[id] for id in after)],
            special_tokens=[(tokens[id], id) for id in {*before, *after}],
        )

    ends = {id for id, text in enumerate(tokens) if text in END_MARKERS and types[id] == TokenType.CONTROL}
    ends.update(ggml[key] for key in ("eos_token_id", "eot_token_id", "eom_token_id") if key in ggml)
    roles = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {role: ggml.get(f"{key}_token_id") for role, key in roles.items()}
    named = {role: tokens[id] for role, id in ids.items() if id is not None}
    template = metadata.get("tokenizer.chat_template")
    return Tokenizer(
        backend,
        bos_token_id=bos,
        eos_token_ids=ends,
        chat_template=ChatTemplate(template, special_tokens=named) if template else None,
    )


def _byte_level_bpe(tokens: list[str], merges: list[str], pre: str) -> tuple[tokenizers.Tokenizer, bool]:
    cut = cut_named(pre)
    vocabulary = {text: id for id, text in enumerate(tokens)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    backend = tokenizers.Tokenizer(BPE(vocabulary, pairs, ignore_merges=cut.whole_words_first))
    if cut.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = cut.pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    return backend, cut.adds_bos


def _sentencepiece_bpe(
    tokens: list[str], types: list[int], scores: list[float], add_space_prefix: bool
) -> tokenizers.Tokenizer:
    """SentencePiece merges the neighbours whose joint piece scores best; a BPE merges by the rank of a pair.

    So every way to cut a piece in two pieces is a merge, ranked by the piece's score.
    """
    mergeable = {
        text: score
        for text, type, score in zip(tokens, types, scores, strict=True)
        if type in (TokenType.NORMAL, TokenType.USER_DEFINED)
    }
    vocabulary = {text: id for id, text in enumerate(tokens)}
    unknown = next((text for text, type in zip(tokens, types, strict=True) if type == TokenType.UNKNOWN), None)
    has_bytes = TokenType.BYTE in types
    backend = tokenizers.Tokenizer(
        BPE(vocabulary, merges_by_score(mergeable), unk_token=unknown, fuse_unk=True, byte_fallback=has_bytes)
    )
    spell_spaces(backend, add_prefix=add_space_prefix)
    return backend


def merges_by_score(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """The merges that pieces with these scores stand for, in order."""
    return [
        (piece[:cut], piece[cut:])
        for piece in sorted(scores, key=lambda piece: -scores[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]


def _unigram(tokens: list[str], types: list[int], scores: list[float], ggml: dict[str, Any]) -> tokenizers.Tokenizer:
    """The likeliest pieces. Bytes and unused tokens must not be found in a text that spells out their names."""
    pieces = [
        (text, UNSEEN if type in (TokenType.BYTE, TokenType.UNUSED) else score)
        for text, type, score in zip(tokens, types, scores, strict=True)
    ]
    unknown = types.index(TokenType.UNKNOWN)
    backend = tokenizers.Tokenizer(Unigram(pieces, unknown, byte_fallback=TokenType.BYTE in types))
    before: list[normalizers.Normalizer] = []
    if charsmap := ggml.get("precompiled_charsmap"):  # SentencePiece's own tables, NFKC or what the model was given
        before.append(normalizers.Precompiled(bytes(byte & 0xFF for byte in charsmap)))
    if ggml.get("remove_extra_whitespaces", False):
        before += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    spell_spaces(backend, add_prefix=ggml.get("add_space_prefix", False), before=before)
    return backend


UNSEEN = -1e4
"""The score of what is to be no reading of a text: spelled out, ``<0x41>`` is six characters."""


def spell_spaces(
    backend: tokenizers.Tokenizer, *, add_prefix: bool, before: Sequence[normalizers.Normalizer] = ()
) -> None:
    """SentencePiece's way with spaces: all are "▁", and mostly one is put before a text and dropped in decoding."""
    spaces = [normalizers.Replace(" ", "▁")]
    backend.normalizer = normalizers.Sequence([*before, *([normalizers.Prepend("▁")] if add_prefix else []), *spaces])
    strip = [decoders.Strip(" ", 1, 0)] if add_prefix else []
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
