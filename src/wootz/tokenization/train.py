"""`train_tokenizer`: a vocabulary of one's own, by any of the four algorithms in use; `write_tokenizer`: as a folder.

- ``byte_bpe``: byte-level BPE (GPT-2, Llama 3, Qwen). Nothing is ever unknown. Ids are ranks: the 256 bytes in order,
  then merges as they were made, then special tokens. Trained by `rustbpe`, which is exact and the fastest we measured;
  of pairs that are equally frequent, the one with the smaller ids comes first.
- ``sentencepiece_bpe``: BPE over characters with spaces as "▁" and bytes for characters it has not (Llama 2, Mistral).
- ``wordpiece``: pieces chosen by frequency, "##" inside a word (BERT). Lower-cases and drops white space.
- ``unigram``: the pieces that make the text likeliest (T5, Gemma's kin), the same spaces and bytes.

The last three by the `tokenizers` library. `wootz.tokenization.reference` has each algorithm to read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rustbpe
import tokenizers
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE, Unigram, WordPiece

from wootz.core.errors import BadRequestError
from wootz.tokenization.gguf_vocabulary import UNSEEN, merges_by_score, spell_spaces
from wootz.tokenization.pre_tokenizers import PATTERNS
from wootz.tokenization.ranks import byte_level_tokenizer

Algorithm = Literal["byte_bpe", "sentencepiece_bpe", "wordpiece", "unigram"]

FIM_TOKENS = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
RESERVED_TOKEN = "<|reserved_special_token_{}|>"
"""How reserved tokens are called until they are renamed (`rename_tokens`); Llama 3's spelling."""

_BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]


def train_tokenizer(
    texts: Iterable[str],
    algorithm: Algorithm = "byte_bpe",
    *,
    vocab_size: int,
    pattern: str = "cl100k",
    special_tokens: Sequence[str] = ("<|endoftext|>",),
    reserve: int = 0,
    nfkc: bool = False,
) -> tokenizers.Tokenizer:
    """A tokenizer with ``vocab_size`` tokens, special and reserved ones included; fewer where the texts hold no more.

    ``pattern`` (byte_bpe) is a name in `PATTERNS` or a regex; ``nfkc`` (SentencePiece kinds) folds compatibility forms,
    which decoding can't undo. ``reserve`` special tokens are kept for later. Raises `BadRequestError` for a vocabulary
    too small for what it must hold, or a pattern that is no regex.
    """
    special = [*special_tokens, *(RESERVED_TOKEN.format(n) for n in range(reserve))]
    if algorithm in ("sentencepiece_bpe", "unigram") and "<unk>" not in special:
        special.insert(0, "<unk>")
    if algorithm == "wordpiece" and "[UNK]" not in special:
        special.insert(0, "[UNK]")
    if len(set(special)) < len(special):
        raise BadRequestError("two special tokens have the same text")
    room = vocab_size - len(special) - (0 if algorithm == "wordpiece" else 256)
    if room < 0:
        raise BadRequestError(
            f"a vocabulary of {vocab_size} has no room for its bytes and {len(special)} special tokens"
        )
    match algorithm:
        case "byte_bpe":
            return _byte_bpe(texts, room, pattern, special)
        case "sentencepiece_bpe":
            return _sentencepiece_bpe(texts, room, special, nfkc)
        case "wordpiece":
            return _wordpiece(texts, vocab_size, special)
        case "unigram":
            return _unigram(texts, room, special, nfkc)


def write_tokenizer(
    backend: tokenizers.Tokenizer,
    folder: Path,
    *,
    roles: Mapping[str, str] | None = None,
    chat_template: str | None = None,
) -> None:
    """``tokenizer.json`` and ``tokenizer_config.json``, as `load_tokenizer` and transformers read them. ``roles`` names
    tokens: ``{"eos_token": "<|endoftext|>"}``. Raises `BadRequestError` for one that the vocabulary has not."""
    for role, text in (roles or {}).items():
        if backend.token_to_id(text) is None:
            raise BadRequestError(f'{role}: the vocabulary has no token "{text}"')
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= roles or {}
    if chat_template is not None:
        config["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")


def _byte_bpe(texts: Iterable[str], room: int, pattern: str, special: list[str]) -> tokenizers.Tokenizer:
    trainer = rustbpe.Tokenizer()  # pyright: ignore[reportAttributeAccessIssue]  compiled, without types
    try:
        trainer.train_from_iterator(iter(texts), 256 + room, pattern=PATTERNS.get(pattern, pattern))
    except ValueError as error:
        known = ", ".join(PATTERNS)
        raise BadRequestError(f'pattern "{pattern}" is neither a regex ({error}) nor one of {known}') from None
    ranks = {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()}
    return byte_level_tokenizer(ranks, pattern=pattern, special_tokens=special)


def _alphabet(room: int) -> int:
    """How many characters get a piece: the most frequent ones, in a quarter of the vocabulary at most. The others are
    spelled in bytes, or unknown to WordPiece."""
    return max(room // 4, 1)


def _sentencepiece_bpe(texts: Iterable[str], room: int, special: list[str], nfkc: bool) -> tokenizers.Tokenizer:
    trained = tokenizers.Tokenizer(BPE())
    trained.normalizer = normalizers.NFKC() if nfkc else None
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=room, limit_alphabet=_alphabet(room), show_progress=False)
    trained.train_from_iterator(texts, trainer)
    model = json.loads(trained.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
    vocabulary = {text: id for id, text in enumerate([*special, *_BYTE_PIECES, *pieces])}
    # Any two neighbours that make a piece may merge, as in SentencePiece; the trainer noted one pair for each.
    merges = merges_by_score({piece: -vocabulary[piece] for piece in pieces})
    backend = tokenizers.Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    return _with_spaces(backend, special, nfkc)


def _unigram(texts: Iterable[str], room: int, special: list[str], nfkc: bool) -> tokenizers.Tokenizer:
    trained = tokenizers.Tokenizer(Unigram())
    trained.normalizer = normalizers.NFKC() if nfkc else None
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=room + 1, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    texts = [*texts]
    counts = Counter(chain.from_iterable(texts))
    rare = {ord(character): " " for character, _ in counts.most_common()[_alphabet(room) :]}
    trained.train_from_iterator((text.translate(rare) for text in texts), trainer)
    learned = [(text, score) for text, score in json.loads(trained.to_str())["model"]["vocab"] if text != "<unk>"]
    # In 32 bits, as SentencePiece and GGUF keep them: sums in 64 are then exact, and equal readings stay equal.
    pieces = [(text, float(np.float32(score))) for text, score in learned]
    known = [(text, 0.0) for text in special] + [(text, UNSEEN) for text in _BYTE_PIECES]
    backend = tokenizers.Tokenizer(Unigram([*known, *pieces], special.index("<unk>"), byte_fallback=True))
    return _with_spaces(backend, special, nfkc)


def _with_spaces(backend: tokenizers.Tokenizer, special: list[str], nfkc: bool) -> tokenizers.Tokenizer:
    spell_spaces(backend, add_prefix=True, before=[normalizers.NFKC()] if nfkc else [])
    backend.add_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    return backend


def _wordpiece(texts: Iterable[str], vocab_size: int, special: list[str]) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    room = vocab_size - len(special)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=special, limit_alphabet=_alphabet(room), show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return backend
