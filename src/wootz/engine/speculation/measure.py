"""What speculation brings on one's own machine and text: the same answers with and without it, timed."""

from __future__ import annotations

import time
from collections.abc import Sequence as Many
from dataclasses import dataclass

from wootz.core import EngineConfig, SpeculationConfig
from wootz.engine.engine import Engine
from wootz.engine.generation import Generation, Prompt
from wootz.engine.protocol import SamplingParams
from wootz.engine.runner import Model
from wootz.engine.speculation.pace import best_length, checking_cost, expected_tokens, speedup
from wootz.tokenization import Tokenizer


@dataclass(frozen=True)
class Measured:
    plain_seconds: float
    seconds: float
    tokens: int
    drafts: int
    draft_tokens: int
    accepted: int
    same_answers: int
    """Of all prompts. Fewer only where rounding tips a tie between two tokens, or where answers are drawn by chance."""
    prompts: int
    draft_cost: float
    row_cost: float

    @property
    def speedup(self) -> float:
        return self.plain_seconds / self.seconds

    @property
    def tokens_per_draft(self) -> float:
        """What a step brings an answer that was drafted for."""
        return 1 + self.accepted / self.drafts if self.drafts else 1.0

    @property
    def acceptance(self) -> float:
        """Of the tokens that were drafted."""
        return self.accepted / self.draft_tokens if self.draft_tokens else 0.0

    def summary(self) -> dict[str, float]:
        return {
            "speedup": self.speedup,
            "tokens_per_draft": self.tokens_per_draft,
            "acceptance": self.acceptance,
            **{name: getattr(self, name) for name in self.__dataclass_fields__},
        }


def measure(
    model: Model,
    tokenizer: Tokenizer | None,
    config: EngineConfig,
    speculation: SpeculationConfig,
    prompts: Many[Prompt],
    params: SamplingParams,
) -> Measured:
    """Answer all ``prompts`` at once, plainly and with drafts, each after a short run that nobody times."""
    plain = Engine(model, config=config.model_copy(update={"speculation": None}), tokenizer=tokenizer)
    row_cost = measure_row_cost(plain, prompts[0])
    plain_seconds, expected = _timed(plain, prompts, params)
    drafting = Engine(model, config=config.model_copy(update={"speculation": speculation}), tokenizer=tokenizer)
    before = drafting.stats()
    seconds, answers = _timed(drafting, prompts, params)
    after = drafting.stats()
    return Measured(
        plain_seconds=plain_seconds,
        seconds=seconds,
        tokens=sum(len(answer.token_ids) for answer in answers),
        drafts=after.drafts - before.drafts,
        draft_tokens=after.draft_tokens - before.draft_tokens,
        accepted=after.draft_tokens_accepted - before.draft_tokens_accepted,
        same_answers=sum(a.token_ids == b.token_ids for a, b in zip(expected, answers, strict=True)),
        prompts=len(prompts),
        draft_cost=drafting.speculation.pace.draft_cost if drafting.speculation else 0.0,
        row_cost=row_cost,
    )


def measure_row_cost(engine: Engine, prompt: Prompt, batch: int = 8, num_tokens: int = 12) -> float:
    """What one more row takes, as a part of what a step takes without any: from steps of 1 and of ``batch`` answers."""
    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    engine.generate([prompt] * batch, params)
    one, many = (min(_timed(engine, [prompt] * size, params)[0] for _ in range(3)) for size in (1, batch))
    row = max(0.0, many - one) / (batch - 1)
    return row / (one - row) if one > row else float("inf")


def model_table(acceptance: float, cost: float, row_cost: float, batch: int, most: int) -> list[dict[str, float]]:
    """For each draft length what the model of speed says, and whether it is the best."""
    total = cost + checking_cost(row_cost, batch)
    best = best_length(acceptance, total, most)
    return [
        {
            "tokens": k,
            "expected_tokens": expected_tokens(acceptance, k),
            "speedup": speedup(acceptance, k, total),
            "best": k == best,
        }
        for k in range(most + 1)
    ]


def _timed(engine: Engine, prompts: Many[Prompt], params: SamplingParams) -> tuple[float, list[Generation]]:
    engine.generate(prompts[:1], SamplingParams(temperature=0, max_tokens=2))
    begin = time.perf_counter()
    answers = engine.generate(prompts, params)
    return time.perf_counter() - begin, answers
