"""How sure can one be of an answer? Four signals, each a function from a model and a request to an answer with a number
between 0 and 1:

- `self_rating`: the model says so itself, 1 to 5. Any model can; it is the noisiest.
- `answer_logprob`: the probability it gave its own words, over the span that holds the answer.
- `agreement`: the share of several samples that come to the same; the answer is one of the largest group.
- `verified`: a check of the task says so (`check_of` makes simple ones from the config).

None of them is a probability of being right before thresholds are fitted to it (`providers/thresholds.py`).
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from wootz.core import LanguageModel, collect_chat
from wootz.core.sections.routes import CascadeConfig, VerifierConfig
from wootz.core.wire import ChatChunk, ChatMessage, ChatRequest, TokenLogprob


@dataclass(frozen=True)
class Judged:
    """An answer as its chunks, and how sure one can be of it."""

    chunks: Sequence[ChatChunk]
    confidence: float


Signal = Callable[[LanguageModel, ChatRequest], Awaitable[Judged]]

RATING = (
    "How sure are you that your last answer is right and complete? Answer with one digit from 1 (it is a guess) to "
    "5 (certain), and nothing else."
)
NOT_FOR_RATINGS = dict.fromkeys(
    (
        *("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"),
        *("stop", "max_completion_tokens", "logprobs", "top_logprobs", "min_tokens", "logit_bias"),
    )
)
TEMPERATURE = 0.8
"""Of samples that are compared, where the request names none: without chance they would agree by construction."""


async def self_rating(model: LanguageModel, request: ChatRequest) -> Judged:
    chunks = await _chunks(model, request)
    said = ChatMessage(role="assistant", content=_text(chunks))
    messages = [*request.messages, said, ChatMessage(role="user", content=RATING)]
    asked = request.model_copy(update={"messages": messages, "temperature": 0.0, "max_tokens": 8} | NOT_FOR_RATINGS)
    asked.model_fields_set.difference_update(NOT_FOR_RATINGS)  # Else an endpoint would be sent their nulls.
    rating = await collect_chat(model.chat(asked))
    digit = re.search(r"[1-5]", rating.choices[0].message.content or "")
    return Judged(chunks, (int(digit[0]) - 1) / 4 if digit else 0.0)


async def answer_logprob(model: LanguageModel, request: ChatRequest) -> Judged:
    """The geometric mean of the tokens' probabilities; 0 for an answer without any."""
    chunks = await _chunks(model, request.model_copy(update={"logprobs": True}))
    tokens = [
        token
        for chunk in chunks
        for choice in chunk.choices
        if choice.logprobs is not None
        for token in choice.logprobs.content or ()
    ]
    if not request.logprobs:
        for chunk in chunks:
            for choice in chunk.choices:
                choice.logprobs = None
    spoken = _answer_tokens(tokens)
    mean = sum(max(token.logprob, -100.0) for token in spoken) / len(spoken) if spoken else -math.inf
    return Judged(chunks, math.exp(min(mean, 0.0)))


def agreement(samples: int) -> Signal:
    async def ask(model: LanguageModel, request: ChatRequest) -> Judged:
        temperature = TEMPERATURE if request.temperature is None else request.temperature
        first = request.seed or 0
        requests = [
            request.model_copy(update={"temperature": temperature, "seed": first + number}) for number in range(samples)
        ]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_chunks(model, one)) for one in requests]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        answers = [task.result() for task in tasks]
        finals = [final_answer(_text(chunks)) for chunks in answers]
        common, count = Counter(finals).most_common(1)[0]
        return Judged(answers[finals.index(common)], count / samples)

    return ask


def verified(check: Callable[[str], float]) -> Signal:
    """``check`` takes the answer's text; a bool is a number, too."""

    async def ask(model: LanguageModel, request: ChatRequest) -> Judged:
        chunks = await _chunks(model, request)
        return Judged(chunks, float(check(_text(chunks))))

    return ask


def check_of(config: VerifierConfig) -> Callable[[str], bool]:
    """A check that all of what the config says has to hold for."""
    pattern = re.compile(config.pattern) if config.pattern is not None else None

    def check(text: str) -> bool:
        if pattern is not None and not pattern.search(text):
            return False
        if config.json_object and not _is_json_object(text):
            return False
        if config.min is None and config.max is None:
            return True
        number = last_number(text)
        return (
            number is not None
            and (config.min is None or number >= config.min)
            and (config.max is None or number <= config.max)
        )

    return check


def signal_of(config: CascadeConfig) -> Signal:
    match config.signal:
        case "self-rating":
            return self_rating
        case "logprob":
            return answer_logprob
        case "agreement":
            return agreement(config.samples)
        case "verifier":
            assert config.verify is not None
            return verified(check_of(config.verify))


def calls_of(config: CascadeConfig) -> int:
    """How often a model is asked for one judgement: for its samples, or once more for its rating."""
    return {"agreement": config.samples, "self-rating": 2}.get(config.signal, 1)


# --- what an answer comes to --------------------------------------------------------------------------------------

_MARK = re.compile(r"(?:final answer|the answer is|answer|答案(?:是|为)?|####|\\boxed)\s*[:：=是{]*\s*", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")


def answer_span(text: str) -> tuple[int, int]:
    """From where to where the text says its answer: behind the last "answer:" or mark of that kind, to the end of that
    line; else all of it."""
    marks = [mark for mark in _MARK.finditer(text) if text[mark.end() :].strip()]
    if not marks:
        return 0, len(text)
    start = marks[-1].end()
    end = text.find("\n", start)
    return start, len(text) if end < 0 else end


def final_answer(text: str) -> str:
    """What is compared between samples: the last number behind the mark, else the words there, in plain spelling."""
    start, end = answer_span(text)
    span = text[start:end]
    if start and (number := last_number(span)) is not None:
        return f"{number.normalize():f}"
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", span).casefold()))


def last_number(text: str) -> Decimal | None:
    found = _NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None


def _answer_tokens(tokens: Sequence[TokenLogprob]) -> list[TokenLogprob]:
    """Those that overlap the span of the answer."""
    start, end = answer_span("".join(token.token for token in tokens))
    place, found = 0, []
    for token in tokens:
        if place < end and place + len(token.token) > start:
            found.append(token)
        place += len(token.token)
    return found


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


async def _chunks(model: LanguageModel, request: ChatRequest) -> list[ChatChunk]:
    return [chunk async for chunk in model.chat(request)]


def _text(chunks: Sequence[ChatChunk]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
