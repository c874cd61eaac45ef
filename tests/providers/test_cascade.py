"""Cascades: which model answers, what it costs, and thresholds against every combination there is."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from decimal import Decimal
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wootz.core import BadRequestError, LanguageModel, UnavailableError, UnsupportedError, collect_chat
from wootz.core.sections.routes import VerifierConfig
from wootz.core.wire import (
    ChatChunk,
    ChatRequest,
    ChoiceLogprobs,
    ChunkChoice,
    Delta,
    TokenLogprob,
    Usage,
)
from wootz.providers.cascade import Cascade
from wootz.providers.confidence import (
    Judged,
    agreement,
    answer_logprob,
    check_of,
    final_answer,
    self_rating,
    verified,
)
from wootz.providers.thresholds import Answered, fit, frontier, operate, read_questions


class Says(LanguageModel):
    """Answers with each of its texts in turn; a text is told word by word, with the given log-probability."""

    def __init__(self, name: str, *texts: Any, logprobs: list[float] | None = None) -> None:
        self.name, self.texts, self.logprobs = name, list(texts), logprobs
        self.asked: list[ChatRequest] = []

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        text = self.texts[len(self.asked) % len(self.texts)]
        self.asked.append(request)
        if isinstance(text, Exception):
            raise text
        words = text.split(" ")
        for number, word in enumerate(words):
            piece = word if number == 0 else f" {word}"
            logprobs = None
            if request.logprobs and self.logprobs:
                logprobs = ChoiceLogprobs(content=[TokenLogprob(token=piece, logprob=self.logprobs[number])])
            choice = ChunkChoice(delta=Delta(content=piece), logprobs=logprobs)
            yield ChatChunk(id="c", model=self.name, choices=[choice])
        yield ChatChunk(id="c", model=self.name, choices=[ChunkChoice(delta=Delta(), finish_reason="stop")])
        yield ChatChunk(id="c", model=self.name, choices=[], usage=Usage(completion_tokens=len(words)))


def question(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "x", "messages": [{"role": "user", "content": "6 * 7?"}], **fields})


async def answer_of(cascade: Cascade, request: ChatRequest | None = None) -> str | None:
    return (await collect_chat(cascade.chat(request or question()))).choices[0].message.content


def certain(**confidences: float) -> Any:
    """A signal that knows how sure each model is."""

    async def ask(model: LanguageModel, request: ChatRequest) -> Judged:
        return Judged([chunk async for chunk in model.chat(request)], confidences[model.name])

    return ask


async def test_the_first_that_is_sure_enough_answers() -> None:
    small, middle, large = Says("small", "forty"), Says("middle", "41"), Says("large", "42")
    for confidences, expected in (
        ({"small": 0.7, "middle": 0.0}, "forty"),
        ({"small": 0.69, "middle": 0.5}, "41"),
        ({"small": 0.0, "middle": 0.49}, "42"),
    ):
        cascade, request = Cascade("c", [small, middle, large], [0.7, 0.5], certain(**confidences)), question()
        assert await answer_of(cascade, request) == expected
    assert request.journey.notes == ['cascade c: "small" 0.00 < 0.70', 'cascade c: "middle" 0.49 < 0.50']
    assert (len(small.asked), len(middle.asked), len(large.asked)) == (3, 2, 1)


async def test_a_model_that_fails_is_not_sure_and_a_wrong_request_stays_wrong() -> None:
    large = Says("large", "42")
    for error in (UnavailableError("down"), UnsupportedError("no logprobs")):
        assert await answer_of(Cascade("c", [Says("small", error), large], [0.1], agreement(3))) == "42"
    with pytest.raises(BadRequestError):
        await answer_of(Cascade("c", [Says("small", BadRequestError("no")), large], [0.1], self_rating))


@pytest.mark.parametrize("fields", [{"n": 2}, {"tools": [{"type": "function", "function": {"name": "f"}}]}])
async def test_what_no_signal_can_judge_goes_to_the_last(fields: dict[str, Any]) -> None:
    small = Says("small", "forty")
    await answer_of(Cascade("c", [small, Says("large", "42")], [0.0], self_rating), question(**fields))
    assert small.asked == []


@pytest.mark.parametrize(("said", "confidence"), [("5", 1.0), ("I say 3.", 0.5), ("1", 0.0), ("very!", 0.0)])
async def test_self_rating(said: str, confidence: float) -> None:
    model, asked = Says("small", "It is 42", said), question(stop=["."], max_completion_tokens=5)
    judged = await self_rating(model, asked)
    assert judged.confidence == confidence
    first, rating = model.asked
    assert first is asked
    assert [message.role for message in rating.messages] == ["user", "assistant", "user"]
    assert rating.messages[1].text == "It is 42"
    assert rating.model_dump(exclude_unset=True).keys() == {"model", "messages", "temperature", "max_tokens"}
    assert rating.journey is asked.journey


async def test_answer_logprob_is_over_the_span_of_the_answer() -> None:
    chances = [0.1, 0.1, 0.5, 0.8]
    model = Says("small", "Hm, so answer: 42", logprobs=[math.log(chance) for chance in chances])
    judged = await answer_logprob(model, question())
    assert judged.confidence == pytest.approx(0.8)
    assert all(choice.logprobs is None for chunk in judged.chunks for choice in chunk.choices)
    whole = Says("small", "just some words here", logprobs=[math.log(chance) for chance in chances])
    judged = await answer_logprob(whole, question(logprobs=True))
    assert judged.confidence == pytest.approx(math.prod(chances) ** 0.25)
    assert judged.chunks[0].choices[0].logprobs is not None
    assert (await answer_logprob(Says("small", "none told"), question())).confidence == 0


async def test_agreement_answers_with_the_largest_group() -> None:
    model = Says("small", "answer: 41", "The answer is 42.", "so...\nAnswer: **42.0**")
    judged = await agreement(3)(model, question())
    assert judged.confidence == pytest.approx(2 / 3)
    assert "".join(c.delta.content or "" for chunk in judged.chunks for c in chunk.choices) == "The answer is 42."
    assert sorted(request.seed for request in model.asked if request.seed is not None) == [0, 1, 2]
    assert all(request.temperature for request in model.asked)


@pytest.mark.parametrize(
    ("text", "final"),
    [
        ("Paris.", "paris"),
        ("First 3, then 4.\nFinal answer: 1,234.50 euros", "1234.5"),
        ("#### 7", "7"),
        ("\\boxed{12}", "12"),
        ("答案是：42。", "42"),
        ("Answer:", "answer"),
    ],
)
def test_final_answers_are_compared_in_plain_spelling(text: str, final: str) -> None:
    assert final_answer(text) == final


async def test_a_verifier_is_a_check_of_the_text() -> None:
    judged = await verified(lambda text: text == "42")(Says("small", "42"), question())
    assert judged.confidence == 1.0
    assert check_of(VerifierConfig(min=Decimal(0), max=Decimal(150)))("He is 42 years old")
    assert not check_of(VerifierConfig(max=Decimal(150)))("He is 1042 years old")
    assert not check_of(VerifierConfig(min=Decimal(0)))("old")
    assert check_of(VerifierConfig(json_object=True, pattern='"a"'))('{"a": 1}')
    assert not check_of(VerifierConfig(json_object=True))("[1]")


# --- thresholds ---------------------------------------------------------------------------------------------------

ENTRY = st.builds(
    Answered,
    confidence=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
    quality=st.sampled_from([Decimal(0), Decimal("0.5"), Decimal(1)]),
    cost=st.decimals(0, 10, places=2),
)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 3).flatmap(lambda k: st.lists(st.lists(ENTRY, min_size=k, max_size=k), min_size=1, max_size=12)),
    st.sampled_from([0.0, 0.5, 0.9, 1.0, 1.1]),
)
def test_fitting_finds_what_brute_force_finds(questions: list[list[Answered]], target: float) -> None:
    stages = len(questions[0]) - 1
    choices = [[*sorted({question[stage].confidence for question in questions}), math.inf] for stage in range(stages)]
    everything = [operate(questions, thresholds) for thresholds in product(*choices)]
    of_last = sum((question[-1].quality for question in questions), Decimal(0)) / len(questions)
    good = [one for one in everything if one.quality >= Decimal(repr(target)) * of_last]
    if not good:
        with pytest.raises(BadRequestError):
            fit(questions, target)
        return
    found = fit(questions, target)
    assert found == operate(questions, found.thresholds)
    assert found.cost == min(one.cost for one in good)
    best = frontier(questions)
    assert all(any(one.cost <= other.cost and one.quality >= other.quality for one in best) for other in everything)
    assert [one.cost for one in best] == sorted(one.cost for one in best)


def test_costs_include_rejected_answers_and_a_blind_signal_saves_nothing() -> None:
    """A cheap model is right six times of ten, at a tenth of the price; its signal knows when, or it guesses."""
    random = Random(3)

    def asked(knows: bool) -> list[list[Answered]]:
        rows = []
        for _ in range(600):
            right = random.random() < 0.6
            confidence = random.random() / 2 + (0.5 if right else 0.0) if knows else random.random()
            rows.append(
                [
                    Answered(confidence=confidence, quality=Decimal(right), cost=Decimal("0.1")),
                    Answered(confidence=1, quality=Decimal(1), cost=Decimal(1)),
                ]
            )
        return rows

    knowing = fit(asked(True), 1.0)
    assert knowing.quality == 1
    assert knowing.shares[0] == pytest.approx(0.6, abs=0.05)
    escalated = round(600 * knowing.shares[1])
    assert knowing.cost * 600 == 600 * Decimal("0.1") + escalated
    assert knowing.wasted * 600 == escalated * Decimal("0.1")
    blind = fit(asked(False), 0.99)
    assert blind.cost > Decimal("0.95")  # Rejected attempts ate what little was saved.


def test_a_bad_file_is_one_clear_error(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    good = '{"models": [{"confidence": 0.5, "quality": 1, "cost": "0.1"}, {"confidence": 1, "quality": 1, "cost": 1}]}'
    file.write_text(good + "\n\n" + good)
    assert len(read_questions(file)) == 2
    for bad in ("", "{}", "no", good.replace("0.5", '"x"'), good.replace('"quality": 1', '"quality": 2')):
        file.write_text(f"{good}\n{bad}" if bad else "")
        with pytest.raises(BadRequestError):
            read_questions(file)
