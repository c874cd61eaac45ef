"""Byte-level BPE as ranks, and the ``.tiktoken`` file that holds them.

tiktoken (https://github.com/openai/tiktoken) knows a vocabulary as ``{bytes: rank}``: the neighbours whose joint
bytes have the lowest rank are merged first, and the rank is the id. The file is one line for each token, its bytes in
base64 and its rank. How text is cut into words and which special tokens there are is not in it, and is known by the
encoding's name.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as Steps

from wootz.core.errors import ModelFileError
from wootz.tokenization.pre_tokenizers import PATTERNS
from wootz.tokenization.spelling import byte_level_to_bytes, bytes_to_byte_level


@dataclass(frozen=True)
class Encoding:
    """What a ``.tiktoken`` file leaves out. ``pattern`` is a name in `PATTERNS` or a regex."""

    pattern: str
    special_tokens: Mapping[str, int]
    eos_token: str
    nfc: bool = False


_FIM = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
_QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{n}|>" for n in range(205)))

ENCODINGS = {
    "r50k_base": Encoding("gpt2", {"<|endoftext|>": 50256}, "<|endoftext|>"),
    "p50k_base": Encoding("gpt2", {"<|endoftext|>": 50256}, "<|endoftext|>"),
    "cl100k_base": Encoding(
        "cl100k",
        {"<|endoftext|>": 100257, **{text: 100258 + n for n, text in enumerate(_FIM)}, "<|endofprompt|>": 100276},
        "<|endoftext|>",
    ),
    "o200k_base": Encoding("o200k", {"<|endoftext|>": 199999, "<|endofprompt|>": 200018}, "<|endoftext|>"),
    "qwen": Encoding("qwen", {text: 151643 + n for n, text in enumerate(_QWEN)}, "<|im_end|>", nfc=True),
}
"""By the name of the file. ``gpt2`` is ``r50k_base`` under the name of the model that it was made for."""
ENCODINGS["gpt2"] = ENCODINGS["r50k_base"]


def read_tiktoken(file: Path) -> dict[bytes, int]:
    """Raises `ModelFileError` when the file is none."""
    ranks: dict[bytes, int] = {}
    number = 0
    try:
        for line in file.read_bytes().splitlines():
            number += 1
            if line:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
    except OSError as error:
        raise ModelFileError(f"{file}: can't be read ({error.strerror})") from None
    except (ValueError, binascii.Error):
        raise ModelFileError(f'{file}, line {number}: not "BASE64 RANK"') from None
    if not ranks or len(set(ranks.values())) < len(ranks):
        raise ModelFileError(f"{file}: {'two tokens have one rank' if ranks else 'holds no tokens'}")
    return ranks


def write_tiktoken(backend: tokenizers.Tokenizer, file: Path) -> None:
    """The ranks of a byte-level BPE. What else it knows (words, special tokens) such a file can't hold.

    Raises `ModelFileError` for another kind of vocabulary, or one whose ids are not in the order of its merges.
    """
    ranks = ranks_of(backend)
    lines = (
        f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in sorted(ranks.items(), key=lambda x: x[1])
    )
    file.write_text("".join(lines), encoding="ascii")


def ranks_of(backend: tokenizers.Tokenizer) -> dict[bytes, int]:
    """Raises `ModelFileError` for a tokenizer whose ids a lowest-rank-first encoder would not give."""
    if not isinstance(backend.model, BPE) or not isinstance(backend.decoder, decoders.ByteLevel):
        raise ModelFileError("only a byte-level BPE has ranks")
    added = backend.get_added_tokens_decoder()
    vocabulary = backend.get_vocab(with_added_tokens=False)
    ranks = {byte_level_to_bytes(text): id for text, id in vocabulary.items() if id not in added}
    merges = merges_of(ranks)
    if [left + right for left, right in merges] != sorted((t for t in ranks if len(t) > 1), key=ranks.__getitem__):
        raise ModelFileError("some tokens are not made by merging others")
    if [tuple(pair) for pair in _merges_in(backend)] != [tuple(map(bytes_to_byte_level, pair)) for pair in merges]:
        raise ModelFileError("ids are not in the order of the merges, as ranks are")
    return ranks


def merges_of(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pair that made each token, in order: what merging the token's own bytes by lower ranks comes to."""
    merges = []
    for token in sorted((token for token in ranks if len(token) > 1), key=ranks.__getitem__):
        parts = merge_by_rank(token, ranks, below=ranks[token])
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges


def merge_by_rank(word: bytes, ranks: Mapping[bytes, int], *, below: int | None = None) -> list[bytes]:
    """``word`` as tokens: again and again, the neighbours whose joint rank is lowest (and under ``below``) are merged.
    Quadratic in the length of a word, and words are short."""
    parts = [word[n : n + 1] for n in range(len(word))]
    while len(parts) > 1:
        found = ((ranks.get(left + right), n) for n, (left, right) in enumerate(pairwise(parts)))
        rank, at = min(((rank, n) for rank, n in found if rank is not None), default=(None, 0))
        if rank is None or (below is not None and rank >= below):
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def byte_level_tokenizer(
    ranks: Mapping[bytes, int],
    *,
    pattern: str,
    special_tokens: Mapping[str, int] | Sequence[str] = (),
    nfc: bool = False,
) -> tokenizers.Tokenizer:
    """A tokenizer out of ranks; ``pattern`` is a name in `PATTERNS` or a regex. Special tokens without ids come
    last."""
    if not isinstance(special_tokens, Mapping):
        first = max(ranks.values()) + 1
        special_tokens = {text: first + n for n, text in enumerate(special_tokens)}
    vocabulary = {bytes_to_byte_level(token): rank for token, rank in ranks.items()}
    merges = [(bytes_to_byte_level(left), bytes_to_byte_level(right)) for left, right in merges_of(ranks)]
    # A whole word that is a token is that token, even if no merges lead to it.
    backend = tokenizers.Tokenizer(BPE(vocabulary | dict(special_tokens), merges, ignore_merges=True))
    if nfc:
        backend.normalizer = tokenizers.normalizers.NFC()
    if pattern == "gpt2":
        backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    else:
        words = Split(Regex(PATTERNS.get(pattern, pattern)), "isolated")
        backend.pre_tokenizer = Steps([words, ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken(text, special=True, normalized=False) for text in special_tokens])
    return backend


def _merges_in(backend: tokenizers.Tokenizer) -> list[list[str]]:
    merges = json.loads(backend.to_str())["model"]["merges"]
    return [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
