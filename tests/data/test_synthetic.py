"""Synthetic text: teachers take turns, what is no use is left out and counted, everything says who wrote it."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import replace
from decimal import Decimal

import pytest

from wootz.core.errors import ConfigError, UnavailableError
from wootz.core.protocol import LanguageModel
from wootz.core.wire import ChatChunk, ChatRequest
from wootz.data.synthetic import Generation, diversity, estimate_cost, generate, mix_guard


class Teacher(LanguageModel):
    """Says a text of its own for every prompt, or always the same."""

    def __init__(self, name: str, fixed: str | None = None, reason: str = "stop") -> None:
        self.name, self.fixed, self.reason, self.prompts = name, fixed, reason, list[str]()

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        self.prompts.append(str(request.messages[0].content))
        own = " ".join(f"{self.name}{len(self.prompts)}w{n}" for n in range(60))
        base = {"id": "x", "created": 0, "model": self.name, "object": "chat.completion.chunk"}
        choice = {"index": 0, "delta": {"content": self.fixed or own}, "finish_reason": self.reason}
        yield ChatChunk.model_validate({**base, "choices": [choice]})
        usage = {"prompt_tokens": 10, "completion_tokens": 60, "total_tokens": 70}
        yield ChatChunk.model_validate({**base, "choices": [], "usage": usage})


PLAN = Generation(topics=["rivers", "steel", "bread"], num_texts=12, concurrency=5, seeds=["a shining example"])


async def test_teachers_take_turns_and_texts_say_who_wrote_them() -> None:
    teachers = [Teacher("strong"), Teacher("mid")]
    answers = [answer async for answer in generate(teachers, PLAN)]
    texts = [answer.document for answer in answers]
    assert [answer.left_out for answer in answers] == [None] * 12
    assert [text.about["teacher"] for text in texts] == ["strong", "mid"] * 6
    assert [text.about["topic"] for text in texts] == ["rivers", "steel", "bread"] * 4
    assert all(
        text.about["synthetic"] and text.about["prompt"] in teachers[n % 2].prompts for n, text in enumerate(texts)
    )
    assert len({text.id for text in texts}) == 12
    assert len(set(teachers[0].prompts)) > 4
    assert all("a shining example" in prompt for prompt in teachers[0].prompts)
    assert sum(answer.completion_tokens for answer in answers) == 720
    resumed = [answer.document async for answer in generate(teachers, PLAN, numbers=range(7, 12))]
    assert [(text.id, text.about["prompt"]) for text in resumed] == [(t.id, t.about["prompt"]) for t in texts[7:]]


@pytest.mark.parametrize(
    ("teacher", "left_out"),
    [
        (Teacher("parrot", fixed="the same words again and again " * 15), {"near copy": 11}),
        (Teacher("shy", fixed="I'm sorry, but I can't. " * 20), {"refusal": 12}),
        (Teacher("brief", fixed="Rivers flow."), {"too short": 12}),
        (Teacher("endless", fixed="on and on " * 30, reason="length"), {"cut off": 12}),
    ],
)
async def test_what_is_no_use_is_left_out(teacher: Teacher, left_out: dict[str, int]) -> None:
    reasons = Counter([answer.left_out async for answer in generate([teacher], PLAN)])
    assert reasons.pop(None, 0) == 12 - sum(left_out.values())
    assert reasons == left_out


async def test_near_copies_of_what_was_kept_before_are_found() -> None:
    same = "the same words again and again " * 15
    reasons = [a.left_out async for a in generate([Teacher("parrot", fixed=same)], PLAN, numbers=[3], kept=[same])]
    assert reasons == ["near copy"]


class Busy(Teacher):
    """Refuses the first tries."""

    tries = 0

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        self.tries += 1
        if self.tries < 3:
            raise UnavailableError("busy")
        async for chunk in super().chat(request):
            yield chunk


async def test_a_busy_teacher_is_asked_again_and_one_that_stays_busy_is_told_of() -> None:
    plan = replace(PLAN, num_texts=1, waits=[0, 0])
    assert [a.left_out async for a in generate([Busy("busy")], plan)] == [None]
    with pytest.raises(UnavailableError):
        [a async for a in generate([Busy("busy")], replace(plan, waits=[0]))]


async def test_without_a_teacher_nothing_is_written() -> None:
    with pytest.raises(ConfigError, match="without a teacher"):
        [answer async for answer in generate([], PLAN)]


def test_the_guard_watches_the_human_share() -> None:
    tokens = {"web": 60.0, "books": 0.0, "made": 40.0}
    assert mix_guard(tokens, ["made"]) is None
    assert mix_guard(tokens, []) is None
    assert "only 40%" in (mix_guard(tokens, ["web"]) or "")
    assert "80%" in (mix_guard({"web": 80, "made": 20}, ["made"]) or "")


def test_diversity_is_the_share_of_distinct_ngrams() -> None:
    assert diversity(["a b c d", "a b c e"], 3) == 3 / 4
    assert diversity(["x y z"] * 4, 3) == 1 / 4
    assert diversity([]) == 0


def test_costs_are_reckoned_with_what_is_thrown_away() -> None:
    cost = estimate_cost(
        8_000_000, kept=0.8, prompt_tokens_per_token=0.5, price_in=Decimal(2), price_out=Decimal(10),
        gpu_hour=Decimal(3), tokens_per_second=1000,
    )  # fmt: skip
    assert cost.api == Decimal(10) * 10 + Decimal(5) * 2
    assert cost.gpu_hours == pytest.approx(10_000_000 / 1000 / 3600)
    assert float(cost.self_hosted) == pytest.approx(3 * cost.gpu_hours)
