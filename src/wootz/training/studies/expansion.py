"""New tokens for a trained model: what should their rows begin as, and should they be trained alone first?

A small model learns one kind of text with a vocabulary for it. Then it gets tokens for another kind, by
`expand_vocabulary`, and trains on that: all of it at once, or the new rows alone and then all, or the embedding and the
head alone by a change of low rank (LoRA). Two figures after every
so many steps: how well it reads the new kind, and what it has forgotten of the old. Both in bits per byte, as models
with other tokens have other losses per token. Steps are of equally many tokens, which with new ones are more text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from wootz.models import Decoder, PackedContext
from wootz.models.loading import load
from wootz.models.low_rank_rows import low_rank_rows
from wootz.models.saving import save
from wootz.tokenization.expand import RowInit, expand_vocabulary
from wootz.tokenization.load import load_tokenizer
from wootz.tokenization.tokenizer import Tokenizer
from wootz.tokenization.train import train_tokenizer, write_tokenizer
from wootz.tokenization.vocabulary_size import bits_per_byte
from wootz.training.fit import FitConfig, fit
from wootz.training.studies.positions import Size, build
from wootz.training.studies.study import Curve, Study
from wootz.training.studies.text import HELD_OUT, corpus, prose, random_rows

SMALL = Size(width=64, layers=2, length=96, steps=300)
AS_IT_IS = "no new tokens"
VARIANTS: dict[str, tuple[RowInit, Literal["all", "staged", "low rank"]]] = {
    "random": ("random", "all"),
    "mean": ("mean", "all"),
    "subpiece-mean": ("subpiece-mean", "all"),
    "random, staged": ("random", "staged"),
    "subpiece-mean, staged": ("subpiece-mean", "staged"),
    "subpiece-mean, LoRA": ("subpiece-mean", "low rank"),
}
"""What rows begin as, and what is trained."""
RANK = 8


@dataclass(frozen=True)
class Texts:
    """One kind of text, in two parts."""

    training: str
    held_out: str

    @staticmethod
    def of(bytes_N: Tensor, most_held_out: int) -> Texts:
        cut = int(len(bytes_N) * (1 - HELD_OUT))
        parts = bytes_N[:cut], bytes_N[cut:][:most_held_out]
        return Texts(*(bytes(part.tolist()).decode(errors="ignore") for part in parts))


def expansion_studies(
    *,
    size: Size = SMALL,
    vocab_size: int = 768,
    num_terms: int = 256,
    tuning_steps: int = 150,
    measure: int = 5,
    most_bytes: int = 1_000_000,
    held_out_bytes: int = 30_000,
    text: Path | None = None,
    new_text: Path | None = None,
) -> tuple[Study, Study]:
    """``text`` is what the model knows (Python's sources), ``new_text`` what it is to learn (English about Python).
    ``measure``: how often on the way. Staged training has a third of its steps for the rows. Both studies read the same
    models."""
    variants = (AS_IT_IS, *VARIANTS)

    @cache
    def old() -> Texts:
        return Texts.of(corpus(text, most_bytes), held_out_bytes)

    @cache
    def new() -> Texts:
        return Texts.of(prose()[:most_bytes] if new_text is None else corpus(new_text, most_bytes), held_out_bytes)

    @cache
    def trained(seed: int) -> TemporaryDirectory[str]:
        """A folder with the model and its tokenizer."""
        folder = TemporaryDirectory()
        write_tokenizer(train_tokenizer([old().training], vocab_size=vocab_size), Path(folder.name, "model"))
        tokenizer = load_tokenizer(Path(folder.name, "model"))
        torch.manual_seed(seed)
        model = build(size, vocab_size=vocab_size)
        rows = random_rows(encoded(tokenizer, old().training), size.batch_size, size.length, seed)
        fit(model, rows, FitConfig(steps=size.steps))
        save(model, Path(folder.name, "trained"), beside=Path(folder.name, "model"))
        return folder

    @cache
    def terms(folder: Path) -> list[str]:
        return useful_terms(load_tokenizer(folder), new().training, num_terms)

    @cache
    def curves(variant: str, seed: int) -> tuple[Curve, Curve]:
        folder = Path(trained(seed).name)
        source, new_rows_V, trains = folder / "trained", None, "all"
        if variant != AS_IT_IS:
            init, trains = VARIANTS[variant]
            expanded = folder / f"expanded {variant}"
            new_rows_V = expand_vocabulary(source, expanded, terms(source), init=init, seed=seed).new_rows()
            source = expanded
        model, tokenizer = load(source), load_tokenizer(source)
        learned: Curve = {}
        kept: Curve = {}

        def look(step: int) -> None:
            model.eval()
            learned[str(step)] = bits(model, tokenizer, new().held_out, size.length)
            kept[str(step)] = bits(model, tokenizer, old().held_out, size.length)
            model.train()

        rows = random_rows(encoded(tokenizer, new().training), size.batch_size, size.length, 77 + seed)
        every, first = max(1, tuning_steps // measure), 0
        look(0)

        def after_step(step: int) -> None:
            if (first + step + 1) % every == 0:
                look(first + step + 1)

        gentle = FitConfig(steps=tuning_steps, learning_rate=1e-3, warmup=10)
        if trains == "low rank":
            with low_rank_rows(model, RANK):
                fit(model, rows, replace(gentle, learning_rate=3e-3, weight_decay=0.0), after_step=after_step)
            return learned, kept
        if trains == "staged" and new_rows_V is not None:
            alone = replace(gentle, steps=tuning_steps // 3, learning_rate=3e-3, weight_decay=0.0)
            with only_rows(model, new_rows_V):
                fit(model, rows, alone, after_step=after_step)
            first = alone.steps
        fit(model, rows, replace(gentle, steps=tuning_steps - first), after_step=after_step)
        return learned, kept

    shared: dict[str, Any] = {
        "variants": variants,
        "x": "steps on the new text",
        "y": "bits per byte, held out",
        "settings": {
            **vars(size),
            "vocab_size": vocab_size,
            "num_terms": num_terms,
            "tuning_steps": tuning_steps,
            "measure": measure,
            "most_bytes": most_bytes,
            "held_out_bytes": held_out_bytes,
            "text": str(text or "standard library"),
            "new_text": str(new_text or "help of Python"),
        },
        "log_x": False,
        "references": (AS_IT_IS,),
    }
    learned = Study(
        name="expansion",
        question=f"{num_terms} tokens for another kind of text: how soon are they learned?",
        run=lambda variant, seed: curves(variant, seed)[0],
        **shared,
    )
    kept = Study(
        name="expansion-damage",
        question="… and what happens to the text that the model knew?",
        run=lambda variant, seed: curves(variant, seed)[1],
        **shared,
    )
    return learned, kept


def useful_terms(tokenizer: Tokenizer, text: str, number: int) -> list[str]:
    """Tokens that a BPE of this text's own has and that would save ``tokenizer`` the most, best first."""
    own = train_tokenizer([text], vocab_size=257 + 4 * number)
    saved: Counter[str] = Counter()
    for id, times in Counter(own.encode(text).ids).items():
        term = own.decode([id])
        if term.strip() and "\N{REPLACEMENT CHARACTER}" not in term:
            saved[term] = times * (len(tokenizer.encode(term, add_special_tokens=False)) - 1)
    return [term for term, tokens in saved.most_common(number) if tokens]


@contextmanager
def only_rows(model: Decoder, rows_V: Tensor) -> Iterator[None]:
    """Gradients reach these rows of the embedding, and of the head if it has its own, and nothing else. (An optimizer
    must not decay weights meanwhile: it would reach all rows.)"""
    weights = {id(weight): weight for weight in (model.embedding.weight, model.head.weight)}.values()
    model.requires_grad_(False)
    hooks = []
    for weight in weights:
        weight.requires_grad_(True)
        hooks.append(weight.register_hook(lambda grad_VD: grad_VD * rows_V.unsqueeze(1)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        model.requires_grad_(True)


def encoded(tokenizer: Tokenizer, text: str) -> Tensor:
    return torch.tensor(tokenizer.encode(text, add_special_tokens=False))


@torch.inference_mode()
def bits(model: Decoder, tokenizer: Tokenizer, text: str, length: int) -> float:
    """Per byte of a text, read in rows of ``length`` tokens, each of which begins with the last token of the one
    before; the very first is given."""
    tokens_N = encoded(tokenizer, text)
    total = 0.0
    for inputs_T, labels_T in zip(tokens_N[:-1].split(32 * length), tokens_N[1:].split(32 * length), strict=True):
        lengths = [len(row) for row in inputs_T.split(length)]
        positions_T = torch.cat([torch.arange(length) for length in lengths])
        logits_TV = model.unembed(model(inputs_T, positions_T, PackedContext(lengths)))
        total += F.cross_entropy(logits_TV, labels_T, reduction="sum").item()
    return bits_per_byte(total, len(text.encode()))
