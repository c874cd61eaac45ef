"""Test-time compute: what more samples of one question buy, and what they cost.

    replies = await sample(model, prompt, 16)                  # any LanguageModel, each reply with a seed of its own
    best = await best_of(prompt, replies, scorer)              # best-of-N: the reply that a scorer likes most
    vote = majority([final_number(reply.text) for reply in replies])        # self-consistency (arXiv 2203.11171)

How good is that, and with how many samples? `attempt` samples every problem n times, once; `curve` then estimates each
strategy for every k up to n *exactly*: the mean over all ways to draw k of the n samples, computed by counting. That is
unbiased (arXiv 2107.03374 for pass@k), and far less noisy than drawing k anew.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from math import comb
from typing import Literal, TypeVar

from wootz.core import SILENT, BadRequestError, LanguageModel, Progress, WootzError
from wootz.evals.asking import Reply, ask
from wootz.evals.statistics import wilson_interval

Scorer = Callable[[str, str], Awaitable[float]]
"""``await scorer(prompt, reply)``: higher is better. A reward model, a judge, a program that runs the tests."""

Answer = TypeVar("Answer", bound=Hashable)

# --- strategies -------------------------------------------------------------------------------------------------------


async def sample(
    model: LanguageModel,
    prompt: str,
    count: int,
    *,
    max_tokens: int = 256,
    temperature: float = 0.8,
    seed: int = 0,
    chat: bool = True,
    concurrency: int = 8,
) -> list[Reply]:
    """``count`` answers to one prompt, with the seeds ``seed``, ``seed + 1``, …; at most ``concurrency`` at a time."""
    replies: dict[int, Reply] = {}
    waiting: Iterator[int] = iter(range(count))

    async def worker() -> None:
        for number in waiting:
            replies[number] = await ask(
                model, prompt, max_tokens=max_tokens, chat=chat, temperature=temperature, seed=seed + number
            )

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, count)):
                group.create_task(worker())
    except* WootzError as errors:
        raise errors.exceptions[0] from None
    return [replies[number] for number in range(count)]


async def best_of(prompt: str, replies: Sequence[Reply], scorer: Scorer) -> Reply:
    """The reply with the highest score; of several, the first."""
    if not replies:
        raise BadRequestError("there is no reply to choose from")
    scores = [await scorer(prompt, reply.text) for reply in replies]
    return replies[scores.index(max(scores))]


def majority(answers: Sequence[Answer | None]) -> tuple[Answer | None, float]:
    """The most frequent answer and its share of all; of several, the first that was given. None (a reply in which no
    answer was found) votes for nothing; of nothing but None comes ``(None, 0.0)``."""
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return None, 0.0
    answer, count = votes.most_common(1)[0]
    return answer, count / len(answers)


def final_number(text: str) -> str | None:
    """The last number of a reply, as arithmetic problems are graded: "so it is 1,250.0." is "1250"."""
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    if not found:
        return None
    number = found[-1].replace(",", "")
    return number.rstrip("0").rstrip(".") if "." in number else number


# --- estimates for k of n samples -------------------------------------------------------------------------------------


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """The chance that at least one of k samples is right."""
    _check(num_samples, k)
    return 1 - comb(num_samples - num_right, k) / comb(num_samples, k)


def majority_at_k(answers: Sequence[Hashable | None], right: Hashable, k: int) -> float:
    """The chance that the most frequent answer among k samples is ``right``; a tie of m answers counts 1 / m.

    Counted, not drawn: for each number j of right samples, the ways to take the other k - j with no wrong answer
    above j, by how many of them tie at j.
    """
    _check(len(answers), k)
    votes = Counter(answers)
    num_right, silent = votes.pop(right, 0), votes.pop(None, 0)
    total = 0.0
    for j in range(1, min(k, num_right) + 1):
        ways: dict[tuple[int, int], int] = {(taken, 0): comb(silent, taken) for taken in range(min(silent, k - j) + 1)}
        for size in votes.values():
            more: Counter[tuple[int, int]] = Counter()
            for (taken, ties), count in ways.items():
                for added in range(min(size, j, k - j - taken) + 1):
                    more[taken + added, ties + (added == j)] += count * comb(size, added)
            ways = more
        won = sum(count / (1 + ties) for (taken, ties), count in ways.items() if taken == k - j)
        total += comb(num_right, j) * won
    return total / comb(len(answers), k)


def best_at_k(scores: Sequence[float], right: Sequence[bool], k: int) -> float:
    """The chance that the best-scored of k samples is right; among equal scores each is as likely."""
    _check(len(scores), k)
    ways = 0.0
    below = 0
    for score in sorted(set(scores)):
        level = [is_right for other, is_right in zip(scores, right, strict=True) if other == score]
        ways += (comb(below + len(level), k) - comb(below, k)) * sum(level) / len(level)
        below += len(level)
    return ways / comb(len(scores), k)


def _check(num_samples: int, k: int) -> None:
    if not 1 <= k <= num_samples:
        raise BadRequestError(f"k must be between 1 and the {num_samples} samples of a problem, not {k}")


# --- compute against quality ------------------------------------------------------------------------------------------

Strategy = Literal["pass", "majority", "best"]


@dataclass(frozen=True)
class Problem:
    prompt: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class Attempts:
    """Everything that was sampled for one problem; ``scores`` are empty without a scorer."""

    problem: Problem
    answers: tuple[str | None, ...]
    scores: tuple[float, ...]
    completion_tokens: tuple[int, ...]

    @property
    def right(self) -> list[bool]:
        return [answer == self.problem.answer for answer in self.answers]

    def at(self, strategy: Strategy, k: int) -> float:
        """The chance that ``strategy`` solves the problem with k samples."""
        if strategy == "pass":
            return pass_at_k(len(self.answers), sum(self.right), k)
        if strategy == "majority":
            return majority_at_k(self.answers, self.problem.answer, k)
        if not self.scores:
            raise BadRequestError("best-of-k needs a scorer")
        return best_at_k(self.scores, self.right, k)


@dataclass(frozen=True, kw_only=True)
class Point:
    """What k samples give: the share of problems solved with its 95 % interval, for so many tokens a problem."""

    k: int
    tokens: float
    score: float
    low: float
    high: float


async def attempt(
    model: LanguageModel,
    problems: Sequence[Problem],
    count: int,
    *,
    extract: Callable[[str], str | None] = final_number,
    scorer: Scorer | None = None,
    max_tokens: int = 256,
    temperature: float = 0.8,
    seed: int = 0,
    chat: bool = True,
    concurrency: int = 8,
    progress: Progress = SILENT,
) -> list[Attempts]:
    """Sample every problem ``count`` times, find each reply's answer, and score it."""
    progress.set_total(len(problems))
    attempts = []
    for problem in problems:
        replies = await sample(
            model,
            problem.prompt,
            count,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            chat=chat,
            concurrency=concurrency,
        )
        attempts.append(
            Attempts(
                problem=problem,
                answers=tuple(extract(reply.text) for reply in replies),
                scores=tuple([await scorer(problem.prompt, reply.text) for reply in replies] if scorer else ()),
                completion_tokens=tuple(reply.completion_tokens for reply in replies),
            )
        )
        progress.advance()
    return attempts


def curve(attempts: Sequence[Attempts], strategy: Strategy, ks: Sequence[int] | None = None) -> list[Point]:
    """Quality against compute, for k = 1, 2, 4, … unless told.

    The interval is Wilson's over problems, each counting with its chance: it says how sure the figure is for *other
    problems like these*. A scorer's own tokens are not counted.
    """
    if not attempts:
        raise BadRequestError("there is no problem to measure")
    fewest = min(len(one.answers) for one in attempts)
    points = []
    for k in ks or [2**power for power in range(fewest.bit_length())]:
        solved = sum(one.at(strategy, k) for one in attempts)
        low, high = wilson_interval(solved, len(attempts))
        tokens = sum(k * sum(one.completion_tokens) / len(one.answers) for one in attempts) / len(attempts)
        points.append(Point(k=k, tokens=tokens, score=solved / len(attempts), low=low, high=high))
    return points
