"""`generate`: texts that models write from seed topics, to extend what people wrote. Any `LanguageModel` is a teacher.

One teacher alone writes in one voice, and what is trained on it narrows; so teachers take turns, and the topics come
from outside of them. The recipe in use is two steps: a strong teacher writes few, diverse texts (``kinds``, audiences
and topics all vary), and a mid-size model, shown some of those as `seeds`, writes the many. Every text carries who
wrote it (``about``), near-copies of earlier ones and refusals are left out, and `mix_guard` says whether people still
have written enough of the mixture. `wootz data synthesize` keeps what is written (`synthesis.py`).
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice

import numpy as np

from wootz.core.errors import ConfigError, WootzError
from wootz.core.protocol import LanguageModel, collect_chat
from wootz.core.wire import ChatCompletion, ChatRequest, Usage
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
    waits: Sequence[float] = (1, 2, 4, 8, 16, 32)
    """Seconds between tries, where a teacher is busy."""

    def prompt(self, number: int) -> str:
        lot = random.Random(f"{self.seed} {number}")
        topic = self.topics[number % len(self.topics)]
        asked = f"Write {lot.choice(self.kinds)} about {topic} for {lot.choice(self.audiences)}. Only the text itself."
        if self.seeds:
            asked += f"\n\nAs an example of the quality that is wanted, on another topic:\n\n{lot.choice(self.seeds)}"
        return asked


@dataclass(frozen=True)
class Answer:
    """What a teacher wrote for one prompt, and why it is left out, if it is."""

    number: int
    document: Document
    left_out: str | None
    prompt_tokens: int
    completion_tokens: int


class NearCopies:
    """Tells whether a text is much like one that it was shown before."""

    def __init__(self, jaccard: float) -> None:
        self._minhash, self._seen = MinHash.at(jaccard), set[tuple[int, int]]()

    def has(self, text: str) -> bool:
        return bool(self._seen.intersection(self._bands(text)))

    def add(self, text: str) -> None:
        self._seen.update(self._bands(text))

    def _bands(self, text: str) -> list[tuple[int, int]]:
        return [*enumerate(self._minhash.band_hashes([text])[0].tolist())]


async def generate(
    teachers: Sequence[LanguageModel],
    plan: Generation,
    *,
    numbers: Iterable[int] | None = None,
    kept: Iterable[str] = (),
) -> AsyncGenerator[Answer]:
    """Answers in order of their prompts, up to ``concurrency`` of which are asked at a time; teachers take turns.
    ``numbers`` are the prompts that are still to be asked (all), ``kept`` the texts that were kept before."""
    if not teachers or not plan.topics:
        raise ConfigError("texts can't be generated without a teacher and topics")
    copies = NearCopies(plan.jaccard)
    for text in kept:
        copies.add(text)
    waiting = iter(range(plan.num_texts) if numbers is None else numbers)
    asked: deque[tuple[int, asyncio.Task[ChatCompletion]]] = deque()
    try:
        while True:
            for number in islice(waiting, plan.concurrency - len(asked)):
                teacher = teachers[number % len(teachers)]
                asked.append((number, asyncio.create_task(_ask(teacher, plan, number))))
            if not asked:
                return
            number, answer = asked[0][0], await asked[0][1]
            asked.popleft()
            yield _answer(teachers[number % len(teachers)], plan, number, answer, copies)
    finally:
        for _, task in asked:
            task.cancel()


def _answer(
    teacher: LanguageModel, plan: Generation, number: int, answer: ChatCompletion, copies: NearCopies
) -> Answer:
    text = str(answer.choices[0].message.content or "").strip()
    reason = _reason_to_leave_out(text, answer.choices[0].finish_reason, plan)
    if reason is None:
        reason = "near copy" if copies.has(text) else None
    if reason is None:
        copies.add(text)
    about = {
        "synthetic": True,
        "teacher": teacher.name,
        "topic": plan.topics[number % len(plan.topics)],
        "prompt": plan.prompt(number),
    }
    usage = answer.usage or Usage(prompt_tokens=0, completion_tokens=0, total_tokens=0)
    document = Document(f"{plan.source}:{plan.seed}:{number}", plan.source, text, about)
    return Answer(number, document, reason, usage.prompt_tokens, usage.completion_tokens)


async def _ask(teacher: LanguageModel, plan: Generation, number: int) -> ChatCompletion:
    """Patiently: an endpoint that is busy or away for a moment is asked again."""
    request = {
        "model": teacher.name,
        "messages": [{"role": "user", "content": plan.prompt(number)}],
        "max_tokens": plan.max_tokens,
        "temperature": plan.temperature,
        "seed": plan.seed + number,
    }
    for wait in (*plan.waits, None):
        try:
            return await collect_chat(teacher.chat(ChatRequest.model_validate(request)))
        except WootzError as error:
            asked_for = getattr(error, "retry_after", None) or 0.0
            if wait is None or not error.retryable or error.code == "upstream_refused" or asked_for > 600:
                raise
            await asyncio.sleep(max(asked_for, wait * random.uniform(0.5, 1.5)))
    raise AssertionError


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
