"""Estimates for k of n samples are exact means over all draws; a model of known accuracy gives the formula's curve."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator
from itertools import combinations, product
from math import comb
from statistics import fmean

import pytest

from wootz.core import BadRequestError, LanguageModel
from wootz.core.wire import ChatChunk, ChatRequest, ChunkChoice, Delta, Usage
from wootz.evals import test_time as ttc

NUM_TOKENS = 7


class Coin(LanguageModel):
    """Is right with a known chance, drawn by prompt and seed; else it says one of some wrong numbers."""

    def __init__(self, accuracy: float, wrong: int = 1) -> None:
        self.name, self.accuracy, self.wrong = "coin", accuracy, wrong
        self.requests: list[ChatRequest] = []

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        self.requests.append(request)
        prompt = request.messages[0].text
        draw = random.Random(f"{prompt} {request.seed}")
        number = int(prompt) if draw.random() < self.accuracy else -1 - draw.randrange(self.wrong)
        choice = ChunkChoice(delta=Delta(content=f"The answer is {number}."), finish_reason="stop")
        yield ChatChunk(id="1", model=self.name, choices=[choice])
        yield ChatChunk(id="1", model=self.name, choices=[], usage=Usage(prompt_tokens=1, completion_tokens=NUM_TOKENS))


PROBLEMS = [ttc.Problem(str(number), str(number)) for number in range(400)]


def draws(values: list, k: int) -> list[tuple]:
    return list(combinations(values, k))


def wins(drawn: tuple, right: object) -> float:
    votes = {answer: drawn.count(answer) for answer in drawn if answer is not None}
    if not votes or votes.get(right, 0) < max(votes.values()):
        return 0.0
    return 1 / sum(count == votes[right] for count in votes.values())


@pytest.mark.parametrize("k", range(1, 8))
@pytest.mark.parametrize("answers", ["RRabbc-", "RRRRRRR", "abc--aa", "RabcRab", "-------"])
def test_estimates_are_means_over_every_way_to_draw(answers, k) -> None:
    values = [None if letter == "-" else letter for letter in answers]
    expected = fmean(any(value == "R" for value in drawn) for drawn in draws(values, k))
    assert ttc.pass_at_k(7, values.count("R"), k) == pytest.approx(expected)
    assert ttc.majority_at_k(values, "R", k) == pytest.approx(fmean(wins(drawn, "R") for drawn in draws(values, k)))
    scored = list(zip([3.0, 1.0, 3.0, 2.0, 0.5, 3.0, 1.0], values, strict=True))
    best = []
    for drawn in draws(scored, k):
        top = max(score for score, _ in drawn)
        best.append(fmean(value == "R" for score, value in drawn if score == top))
    right = [value == "R" for value in values]
    assert ttc.best_at_k([score for score, _ in scored], right, k) == pytest.approx(fmean(best))


@pytest.mark.parametrize("accuracy", [0.2, 0.6])
def test_estimates_are_unbiased(accuracy) -> None:
    """The mean over every outcome of 6 coin flips is the closed form for k = 3."""
    total = {"pass": 0.0, "majority": 0.0, "best": 0.0}
    for flips in product([True, False], repeat=6):
        chance = accuracy ** sum(flips) * (1 - accuracy) ** (6 - sum(flips))
        total["pass"] += chance * ttc.pass_at_k(6, sum(flips), 3)
        total["majority"] += chance * ttc.majority_at_k([str(flip) for flip in flips], "True", 3)
        total["best"] += chance * ttc.best_at_k([float(flip) for flip in flips], flips, 3)
    either = 1 - (1 - accuracy) ** 3
    assert total["pass"] == pytest.approx(either)
    assert total["best"] == pytest.approx(either)  # A scorer that knows.
    assert total["majority"] == pytest.approx(binomial_majority(accuracy, 3))


def binomial_majority(accuracy: float, k: int) -> float:
    return sum(comb(k, j) * accuracy**j * (1 - accuracy) ** (k - j) for j in range(k // 2 + 1, k + 1))


async def test_curve_of_a_coin_is_the_formula() -> None:
    async def taste(prompt: str, reply: str) -> float:
        return float(ttc.final_number(reply) == prompt)

    attempts = await ttc.attempt(Coin(0.6), PROBLEMS, 8, scorer=taste)
    for strategy, closed_form in {
        "pass": lambda k: 1 - 0.4**k,
        "best": lambda k: 1 - 0.4**k,
        "majority": lambda k: binomial_majority(0.6, k),
    }.items():
        for point in ttc.curve(attempts, strategy, [1, 3, 5, 7]):
            assert point.low < closed_form(point.k) < point.high
            assert point.score == pytest.approx(closed_form(point.k), abs=0.03)
            assert point.tokens == NUM_TOKENS * point.k
    assert [point.k for point in ttc.curve(attempts, "pass")] == [1, 2, 4, 8]


async def test_voting_helps_when_wrong_answers_scatter_and_hurts_when_they_agree() -> None:
    scattered = ttc.curve(await ttc.attempt(Coin(0.4, wrong=20), PROBLEMS[:100], 9), "majority", [1, 9])
    agreed = ttc.curve(await ttc.attempt(Coin(0.4, wrong=1), PROBLEMS[:100], 9), "majority", [1, 9])
    assert scattered[1].score > 0.8 > 0.5 > scattered[0].score
    assert agreed[1].score < agreed[0].score


async def test_replies_differ_by_seed_and_come_in_their_order() -> None:
    model = Coin(0.5, wrong=1000)
    replies = await ttc.sample(model, "5", 12, temperature=0.7, seed=100, concurrency=5)
    assert sorted(request.seed for request in model.requests) == list(range(100, 112))
    assert {request.temperature for request in model.requests} == {0.7}
    assert replies[3].text == (await ttc.sample(Coin(0.5, wrong=1000), "5", 1, seed=103))[0].text
    assert len({reply.text for reply in replies}) > 3

    async def length(prompt: str, reply: str) -> float:
        return len(reply)

    assert len((await ttc.best_of("5", replies, length)).text) == max(len(reply.text) for reply in replies)


def test_majority_takes_the_first_of_equals_and_ignores_silence() -> None:
    assert ttc.majority(["b", "a", None, "a", "b"]) == ("b", 0.4)
    assert ttc.majority([None, None, "c"]) == ("c", 1 / 3)
    assert ttc.majority([None]) == (None, 0.0)


def test_final_numbers_are_compared_as_numbers() -> None:
    assert ttc.final_number("3 + 4 is 7, so it costs $1,250.00.") == "1250"
    assert ttc.final_number("It falls to -2.50 degrees") == "-2.5"
    assert ttc.final_number("I don't know.") is None


async def test_what_cannot_be_measured_is_refused() -> None:
    attempts = await ttc.attempt(Coin(0.5), PROBLEMS[:2], 4)
    with pytest.raises(BadRequestError, match="between 1 and the 4"):
        ttc.curve(attempts, "pass", [5])
    with pytest.raises(BadRequestError, match="needs a scorer"):
        ttc.curve(attempts, "best")
    with pytest.raises(BadRequestError, match="no problem"):
        ttc.curve([], "pass")
