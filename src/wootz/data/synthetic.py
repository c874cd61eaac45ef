"""`generate`: texts that models write from seed topics, to extend what people wrote. Any `LanguageModel` is a teacher.

One teacher alone writes in one voice, and what is trained on it narrows; so teachers take turns, and the topics come
from outside of them. The recipe in use is two steps: a strong teacher writes few, diverse texts (``kinds``, audiences
and topics all vary), and a mid-size model, shown some of those as `seeds`, writes the many. Every text carries who
wrote it (``about``), near-copies of earlier ones and refusals are left out, and `mix_guard` says whether people still
have written enough of the mixture.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np

from wootz.core.errors import ConfigError
from wootz.core.protocol import LanguageModel, collect_chat
from wootz.core.wire import ChatRequest
from wootz.data.documents import Document
from wootz.data.minhash import MinHash
from wootz.data.shingles import shingles

KINDS = (
    "a textbook section",
    "a dialogue between two experts",
    "a worked exercise",
    "an encyclopedia entry",
    "a story",
)
AUDIENCES = ("children", "students", "experts", "curious readers")
_REFUSALS = ("i'm sorry", "i am sorry", "i can't", "i cannot", "as an ai")
HUMAN_AT_LEAST, HUMAN_AT_MOST = 0.5, 0.7
"""Of the tokens of a mixture with synthetic text; more of it invites collapse, less wastes it."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How texts are asked for. Equal settings ask the same prompts in the same order."""

    topics: Sequence[str]
    num_texts: int
    kinds: Sequence[str] = KINDS
    audiences: Sequence[str] = AUDIENCES
    seeds: Sequence[str] = ()
    """Texts of a stronger teacher, one of which each prompt shows as an example."""
    max_tokens: int = 1024
    temperature: float = 1.0
    min_words: int = 50
    jaccard: float = 0.7
    source: str = "synthetic"
    seed: int = 0
    concurrency: int = 8

    def prompt(self, number: int) -> str:
        lot = random.Random(f"{self.seed} {number}")
        topic = self.topics[number % len(self.topics)]
        asked = f"Write {lot.choice(self.kinds)} about {topic} for {lot.choice(self.audiences)}. Only the text itself."
        if self.seeds:
            asked += f"\n\nAs an example of the quality that is wanted, on another topic:\n\n{lot.choice(self.seeds)}"
        return asked


@dataclass
class Generated:
    """What was asked and left out, and what it took."""

    asked: int = 0
    kept: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0


async def generate(
    teachers: Sequence[LanguageModel], plan: Generation, made: Generated | None = None, *, start: int = 0
) -> AsyncIterator[Document]:
    """Texts as they are written, in order of their prompts; teachers take turns. ``start`` goes on after that many
    prompts (``Generated.asked`` of before)."""
    if not teachers or not plan.topics:
        raise ConfigError("texts can't be generated without a teacher and topics")
    made, minhash, seen = made or Generated(), MinHash.at(plan.jaccard), set[tuple[int, int]]()
    made.asked = start
    for first in range(start, plan.num_texts, plan.concurrency):
        numbers = range(first, min(first + plan.concurrency, plan.num_texts))
        asked = [(teachers[number % len(teachers)], plan.prompt(number)) for number in numbers]
        answers = await asyncio.gather(*(_ask(teacher, prompt, plan) for teacher, prompt in asked))
        for number, (teacher, prompt), answer in zip(numbers, asked, answers, strict=True):
            made.asked += 1
            if answer.usage:
                made.prompt_tokens += answer.usage.prompt_tokens
                made.completion_tokens += answer.usage.completion_tokens
            text = str(answer.choices[0].message.content or "").strip()
            reason = _reason_to_leave_out(text, answer.choices[0].finish_reason, plan)
            bands = [*enumerate(minhash.band_hashes([text])[0].tolist())]
            if reason is None and seen.intersection(bands):
                reason = "near copy"
            if reason is not None:
                made.left_out[reason] = made.left_out.get(reason, 0) + 1
                continue
            seen.update(bands)
            made.kept += 1
            about = {"synthetic": True, "teacher": teacher.name, "topic": plan.topics[number % len(plan.topics)]}
            yield Document(f"{plan.source}:{plan.seed}:{number}", plan.source, text, {**about, "prompt": prompt})


async def _ask(teacher: LanguageModel, prompt: str, plan: Generation) -> Any:
    return await collect_chat(
        teacher.chat(
            ChatRequest.model_validate(
                {
                    "model": teacher.name,
                    "messages": [{"role": "user", "content": prompt}],
                    "max_tokens": plan.max_tokens,
                    "temperature": plan.temperature,
                }
            )
        )
    )


def _reason_to_leave_out(text: str, finish_reason: str | None, plan: Generation) -> str | None:
    if text.lower().startswith(_REFUSALS):
        return "refusal"
    if finish_reason == "length":
        return "cut off"
    return "too short" if len(text.split()) < plan.min_words else None


def mix_guard(tokens: Mapping[str, float], synthetic: Iterable[str]) -> str | None:
    """What is wrong with the human share of these tokens (or weights) by source; None if nothing is, or if no source
    is synthetic."""
    by_models, total = sum(tokens.get(source, 0) for source in synthetic), sum(tokens.values())
    if not by_models or not total:
        return None
    human = 1 - by_models / total
    if human < HUMAN_AT_LEAST:
        return f"people wrote only {human:.0%} of the mixture: below {HUMAN_AT_LEAST:.0%} models may collapse"
    if human > HUMAN_AT_MOST:
        return f"people wrote {human:.0%} of the mixture; up to {1 - HUMAN_AT_LEAST:.0%} may be synthetic"
    return None


def diversity(texts: Sequence[str], ngram: int = 3) -> float:
    """Distinct n-grams of words, as a share of all: 1 if nothing is ever said twice."""
    hashes = shingles(texts, ngram).hashes
    return len(np.unique(hashes)) / len(hashes) if len(hashes) else 0.0


@dataclass(frozen=True)
class Cost:
    """Of so many tokens of new text."""

    api: Decimal
    self_hosted: Decimal
    gpu_hours: float


def estimate_cost(
    num_tokens: int,
    *,
    kept: float = 0.8,
    prompt_tokens_per_token: float = 0.2,
    price_in: Decimal,
    price_out: Decimal,
    gpu_hour: Decimal,
    tokens_per_second: float,
) -> Cost:
    """A provider's prices (per million tokens) against a GPU of one's own that generates so many tokens per second.
    ``kept`` is the share of text that the filters leave: the rest is paid for too."""
    written = Decimal(num_tokens) / Decimal(str(kept))
    read = written * Decimal(str(prompt_tokens_per_token))
    hours = float(written) / tokens_per_second / 3600
    api = (written * price_out + read * price_in) / 1_000_000
    return Cost(api, gpu_hour * Decimal(str(hours)), hours)
