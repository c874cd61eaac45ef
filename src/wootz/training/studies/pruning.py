"""Pruning by loss: a small model reads a corpus, and others learn from the part that it found least, middlingly or most
surprising. Marion et al. (arXiv 2309.04564) did best with the middle, and better than with everything.

Two corpora, real documents as they are, and dirtied as in `studies.cleaning`: pruning is said to leave out boilerplate
at the low end and noise at the high one, and here it is known which documents are that. The model that scores has read
others of the same making, and judges each by its first ``size.length`` tokens, as far as it learned to read. All learn
for as many steps, so from a part they read each byte more often; one part is taken by lot, to tell a smaller corpus
from a better one.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from wootz.data.documents import Source
from wootz.data.token_store import TokenStore, TokenStoreWriter
from wootz.models import Decoder
from wootz.training.pruning import Part, document_losses, informative
from wootz.training.studies.cleaning import dirtied, joined, some_texts, taught
from wootz.training.studies.optimizers import SMALL
from wootz.training.studies.positions import Size
from wootz.training.studies.study import Curve, Study
from wootz.training.studies.text import VOCAB_SIZE

SIZE = replace(SMALL, length=128, steps=400)
EVERYTHING, BY_LOT = "everything", "by lot"
PARTS: dict[str, Part] = {"lowest loss": "low", "middle": "middle", "highest loss": "high"}
VARIANTS = (EVERYTHING, *PARTS, BY_LOT)


@dataclass(frozen=True)
class Corpus:
    """Of one seed."""

    texts: list[str]
    losses: NDArray[np.float64]
    """Of each text, in nats per byte of its beginning."""
    debris: frozenset[str]
    copies: frozenset[str]
    """Those of the texts that were planted."""
    apart_N: Tensor
    """What all are judged by, clean."""


def pruning_studies(
    text: Source, *, size: Size = SIZE, documents: int = 1000, keep: float = 0.3, copied: int = 10, copies: int = 50,
    debris: float = 0.3, every: int = 0,
) -> tuple[Study, Study]:  # fmt: skip
    """Held-out bits per byte by step, from the ``keep`` part of a dirty corpus and of a clean one."""
    every = every or max(1, size.steps // 4)

    def study(name: str, question: str, **dirt: Any) -> Study:
        @cache
        def corpus(seed: int) -> Corpus:
            return scored(text, documents, size, seed, **dirt)

        def run(variant: str, seed: int) -> Curve:
            found = corpus(seed)
            kept = [found.texts[number] for number in chosen(found.losses, variant, keep, seed)]
            return taught(joined(kept), found.apart_N, size, seed, every)[1]

        def notes(variant: str, seed: int) -> dict[str, Any]:
            found = corpus(seed)
            numbers = chosen(found.losses, variant, keep, seed)
            kept = [found.texts[number] for number in numbers]
            num_bytes = sum(len(text.encode()) for text in kept)
            return {
                "documents": len(kept),
                "share": len(kept) / len(found.texts),
                "bytes": num_bytes,
                "passes": size.steps * size.batch_size * size.length / num_bytes,
                "debris": sum(text in found.debris for text in kept) / len(kept),
                "copies": sum(text in found.copies for text in kept) / len(kept),
                "loss": float(found.losses[numbers].mean()),
            }

        settings = {**vars(size), "text": text.name, "documents": documents, "keep": keep, **dirt}
        return Study(
            name=name, question=question, variants=VARIANTS, x="step", y="bits per byte", settings=settings, run=run,
            notes=notes, log_x=False, references=(EVERYTHING, BY_LOT),
        )  # fmt: skip

    return (
        study("pruning", f"{keep:.0%} of a dirty corpus, by a small model's loss",
              copied=copied, copies=copies, debris=debris),
        study("pruning-clean", f"{keep:.0%} of a clean corpus, by a small model's loss",
              copied=0, copies=0, debris=0.0),
    )  # fmt: skip


def scored(text: Source, documents: int, size: Size, seed: int, *, copied: int, copies: int, debris: float) -> Corpus:
    """Half of the documents is for the model that scores the other half."""
    found, apart_N = some_texts(text, 2 * documents, seed)
    others, originals = found[:documents], found[documents:]
    texts = dirtied(originals, copied, copies, debris, seed)
    without_debris = dirtied(originals, copied, copies, 0.0, seed)  # Copies are drawn first, so they are the same.
    model, _ = taught(joined(dirtied(others, copied, copies, debris, seed + 1000)), apart_N, size, seed, size.steps)
    return Corpus(
        texts,
        losses_of(model, texts, size.length),
        frozenset(texts) - frozenset(without_debris),
        frozenset(without_debris) - frozenset(originals),
        apart_N,
    )


def losses_of(model: Decoder, texts: list[str], most_bytes: int) -> NDArray[np.float64]:
    with TemporaryDirectory() as folder:
        with TokenStoreWriter(Path(folder), vocab_size=VOCAB_SIZE) as writer:
            for text in texts:
                writer.add(np.frombuffer(text.encode(), np.uint8))
        return document_losses(model, TokenStore.open(folder), most_tokens=most_bytes)


def chosen(losses: NDArray[np.float64], variant: str, keep: float, seed: int) -> list[int]:
    """Numbers of the documents that a variant learns from."""
    if variant == EVERYTHING:
        return list(range(len(losses)))
    middle = informative(losses, keep, PARTS.get(variant, "middle")).tolist()
    return sorted(random.Random(seed).sample(range(len(losses)), len(middle))) if variant == BY_LOT else middle
