"""How a vocabulary spells bytes as text, and the way back.

A vocabulary lists its tokens as text, but a token may be any bytes, such as a third of "€". Two spellings cover the
language models in use. GPT-2's *byte-level* alphabet writes each of the 256 bytes as one printable character
(https://github.com/openai/gpt-2, ``bytes_to_unicode``). *SentencePiece* writes a space as "▁" and a byte that
belongs to no piece as ``<0x0A>`` (arXiv 1808.06226), and has the decoder drop the space it put before a text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import tokenizers

from wootz.core.errors import ModelFileError

# Printable Latin-1 stands for itself; the other bytes, in order, take the characters from U+0100 up.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = sorted(set(range(256)) - set(_PRINTABLE))
_BYTE_OF = {code: code for code in _PRINTABLE} | {0x100 + n: byte for n, byte in enumerate(_HIDDEN)}
_CODE_OF = {byte: code for code, byte in _BYTE_OF.items()}

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class Spelling:
    to_bytes: Callable[[str], bytes]
    covers_added_tokens: bool
    """Whether added tokens that are not special are spelled this way too, rather than being plain text."""
    strips_leading_space: bool
    """Whether a text's first space is the encoder's and is dropped when decoding."""


def spelling_of(backend: tokenizers.Tokenizer) -> Spelling:
    """The spelling that the tokenizer's decoder undoes. Raises `ModelFileError` for one that keeps no exact bytes."""
    decoder = backend.decoder
    steps = [] if decoder is None else _steps(json.loads(decoder.__getstate__()))
    by_type = {step["type"]: step for step in steps}
    if "ByteLevel" in by_type:
        return Spelling(byte_level_to_bytes, covers_added_tokens=False, strips_leading_space=False)
    if "WordPiece" in by_type:
        prefix = by_type["WordPiece"]["prefix"]
        return Spelling(partial(word_piece_to_bytes, prefix), covers_added_tokens=False, strips_leading_space=True)
    if by_type.keys() & {"ByteFallback", "Metaspace", "Replace"}:
        strips = by_type.get("Strip", {}).get("start", 0) > 0
        prepends = by_type.get("Metaspace", {}).get("prepend_scheme", "never") != "never"
        return Spelling(piece_to_bytes, covers_added_tokens=True, strips_leading_space=strips or prepends)
    found = ", ".join(by_type) or "none"
    raise ModelFileError(
        f"tokenizer: only byte-level, SentencePiece and WordPiece vocabularies are supported (decoder: {found})"
    )


def _steps(decoder: dict) -> list[dict]:
    return decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]


def byte_level_alphabet() -> dict[int, str]:
    """GPT-2's printable character for each of the 256 bytes."""
    return {byte: chr(code) for code, byte in sorted(_BYTE_OF.items())}


def bytes_to_byte_level(data: bytes) -> str:
    """The inverse of `byte_level_to_bytes`, exact for any bytes."""
    return data.decode("latin-1").translate(_CODE_OF)


def byte_level_to_bytes(token: str) -> bytes:
    """The bytes of a token in the byte-level alphabet; a token that leaves the alphabet is plain text."""
    try:
        return token.translate(_BYTE_OF).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode()


def piece_to_bytes(piece: str) -> bytes:
    """The bytes of a SentencePiece piece."""
    byte = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()


def word_piece_to_bytes(prefix: str, piece: str) -> bytes:
    """A piece of a WordPiece vocabulary: a word's beginning, or with ``prefix`` its continuation. How many spaces there
    were between words, and which case letters had, is not kept."""
    return piece.removeprefix(prefix).encode() if piece.startswith(prefix) else f" {piece}".encode()
