"""How large should a vocabulary be? One BPE training, cut off at several sizes, and a small model with each.

Models with different tokens are compared in bits per byte of held-out text, after as many steps of as many bytes: rows
are as long in bytes, and therefore shorter in tokens where tokens are longer. Larger vocabularies so read more cheaply,
and have more parameters, in the embedding, which is what they pay with (arXiv 2407.13623).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from wootz.data.batch import Batch
from wootz.tokenization.tokenizer import Tokenizer
from wootz.tokenization.train import train_tokenizer
from wootz.tokenization.vocabulary_size import bits_per_byte, first_merges
from wootz.training.fit import FitConfig, fit, losses_by_position
from wootz.training.studies.positions import Size, build
from wootz.training.studies.study import Curve, Study
from wootz.training.studies.text import HELD_OUT, corpus, held_out_rows, training_rows

SIZES = (257, 512, 1024, 2048, 4096)
"""257 are the bytes, and one token that ends a text."""


@dataclass(frozen=True)
class TokenizedText:
    tokens_N: Tensor
    bytes_per_token: float
    bytes_V: Tensor
    """How many bytes each token of the vocabulary stands for."""


def vocabulary_study(
    *,
    sizes: tuple[int, ...] = SIZES,
    widths: tuple[int, ...] = (48, 96),
    size: Size = Size(length=256),
    text: Path | None = None,
    most_bytes: int = 2_000_000,
) -> Study:
    """``size.length`` is that of a row in bytes."""

    @cache
    def trained_tokenizer() -> str:
        """On the part of the text that models are trained on too."""
        whole = corpus(text, most_bytes)
        return train_tokenizer([_decoded(whole[: int(len(whole) * (1 - HELD_OUT))])], vocab_size=max(sizes)).to_str()

    @cache
    def tokenized(vocab_size: int) -> TokenizedText:
        backend = first_merges(trained_tokenizer(), vocab_size)
        tokenizer = Tokenizer(backend, bos_token_id=None, eos_token_ids=(), chat_template=None)
        whole = corpus(text, most_bytes)
        tokens_N = torch.tensor(tokenizer.encode(_decoded(whole)))
        # The alphabet of a byte-level BPE has one letter per byte.
        bytes_V = torch.tensor([len(backend.id_to_token(id) or "") for id in range(vocab_size)])
        return TokenizedText(tokens_N, bytes_V[tokens_N].sum().item() / len(tokens_N), bytes_V)

    def run(variant: str, seed: int) -> Curve:
        shape, curve = replace(size, width=int(variant.split()[-1])), {}
        for vocab_size in sizes:
            text_of = tokenized(vocab_size)
            length = max(2, round(size.length / text_of.bytes_per_token))
            torch.manual_seed(seed)
            model = build(shape, vocab_size=vocab_size, max_position_embeddings=length)
            rows: Iterator[Batch] = training_rows(text_of.tokens_N, size.batch_size, length, seed)
            fit(model, rows, FitConfig(steps=size.steps))
            held_out = held_out_rows(text_of.tokens_N, 64, length)
            loss = losses_by_position(model, held_out).sum().item() * len(held_out)
            curve[str(vocab_size)] = bits_per_byte(loss, int(text_of.bytes_V[held_out[:, 1:]].sum()))
        return curve

    return Study(
        name="vocabulary",
        question=f"Rows of {size.length} bytes: how large a vocabulary?",
        variants=tuple(f"width {width}" for width in widths),
        x="tokens in the vocabulary",
        y="bits per byte of held-out text",
        settings={
            **vars(size),
            "sizes": list(sizes),
            "most_bytes": most_bytes,
            "text": str(text or "standard library"),
        },
        run=run,
    )


def _decoded(bytes_N: Tensor) -> str:
    return bytes(bytes_N.tolist()).decode(errors="replace")
