"""A long day of an engine in miniature: many users, every kind of request, some of whom hang up.

What is asked is the table `MIX`: a kind is a name, how often it comes, and a function that makes one request. To soak
something new, add a row. Each user keeps so many requests in the engine (`USERS`); an engine that served in order of
arrival would give them shares in that proportion.
"""

from __future__ import annotations

import gc
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psutil

from wootz.engine import Engine, SamplingParams
from wootz.engine.protocol import Finished, Output, StructuredOutput
from wootz.engine.sequence import Request

TEXTS = ("the engine", "a request leaves one record", "You are a careful assistant. ", "the house of models", "x")
SYSTEM = "Permission is hereby granted to any person who reads this prompt, for it is the same for everybody. "
USERS = {"ann": 8, "bob": 12, "eve": 24, "flood": 48}
"""Each user's requests in the engine at any time."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request. ``patience`` is after how many tokens the caller hangs up; None: never."""

    prompt: Any
    params: dict[str, Any] = field(default_factory=dict)
    priority: int = 0
    patience: int | None = None
    adapter: str | None = None


@dataclass(frozen=True)
class Kind:
    name: str
    share: float
    make: Callable[[random.Random], Ask]


def text(rng: random.Random) -> str:
    return " ".join(rng.choices(TEXTS, k=rng.randint(1, 4)))


WORDS = ("yes", "no", "perhaps, but ask again")
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"enum": list(WORDS)}, "sure": {"type": "boolean"}},
    "required": ["answer", "sure"],
    "additionalProperties": False,
}
ADAPTERS = ("one", "another")


def structured(rng: random.Random, structure: StructuredOutput) -> Ask:
    return Ask(prompt=text(rng), params={"structured": structure, "max_tokens": 200})


MIX = (
    Kind("short", 30, lambda rng: Ask(prompt=text(rng), params={"max_tokens": rng.randint(1, 8)})),
    Kind("chat", 20, lambda rng: Ask(prompt=[{"role": "user", "content": text(rng)}], params={"max_tokens": 16})),
    Kind("same system prompt", 15, lambda rng: Ask(prompt=SYSTEM + text(rng), params={"max_tokens": 12})),
    Kind("long prompt", 8, lambda rng: Ask(prompt=text(rng) * 12, params={"max_tokens": 4})),
    Kind("long answer", 5, lambda rng: Ask(prompt=text(rng), params={"max_tokens": 60, "ignore_eos": True})),
    Kind("choices", 6, lambda rng: Ask(prompt=text(rng), params={"n": rng.randint(2, 4), "max_tokens": 8})),
    Kind("stop strings", 6, lambda rng: Ask(prompt=text(rng), params={"stop": ("e", "th"), "max_tokens": 24})),
    Kind("log-probabilities", 3, lambda rng: Ask(prompt=text(rng), params={"logprobs": 2, "max_tokens": 6})),
    Kind("impatient", 6, lambda rng: Ask(prompt=text(rng), params={"max_tokens": 40}, patience=rng.randint(0, 10))),
    Kind("urgent", 4, lambda rng: Ask(prompt=text(rng), params={"max_tokens": 6}, priority=-2)),
    Kind("background", 5, lambda rng: Ask(prompt=text(rng), params={"max_tokens": 10}, priority=3)),
    Kind("JSON Schema", 4, lambda rng: structured(rng, StructuredOutput(json_schema=SCHEMA))),
    Kind("one of some words", 3, lambda rng: structured(rng, StructuredOutput(choice=WORDS))),
    Kind("adapter", 8, lambda rng: Ask(prompt=text(rng), params={"max_tokens": 8}, adapter=rng.choice(ADAPTERS))),
)


@dataclass
class Result:
    """What is left of a run."""

    finished: Counter[str] = field(default_factory=Counter)
    """By kind; those that hung up are in ``cancelled``."""
    cancelled: int = 0
    served: Counter[str] = field(default_factory=Counter)
    """Tokens computed and answered for each user while all of them had more to ask."""
    longest_steps: int = 0
    """The longest that any request was in the engine."""
    memory_growth: int = 0
    """Bytes, from a quarter of the run to its end."""
    new_files: int = 0
    answers: list[tuple[Ask, SamplingParams, list[list[int]]]] = field(default_factory=list)
    """Every twentieth that was answered."""

    @property
    def jain(self) -> float:
        """Jain's index of fairness over ``served``."""
        shares = [self.served[user] for user in USERS]
        return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))


@dataclass
class Live:
    ask: Ask
    kind: str
    request: Request
    submitted_at: int
    tokens: list[list[int]]


def soak(engine: Engine, num_requests: int, *, one_user: bool = False, temperature: float = 1.0) -> Result:
    """Run ``num_requests`` through the engine. ``one_user`` hides from the engine who asks."""
    rng, result, process = random.Random(0), Result(), psutil.Process()
    waiting = dict.fromkeys(USERS, 0)
    live: dict[str, Live] = {}
    num_asked, memory = 0, 0
    gc.collect()  # What an earlier test left is not to be closed in this one's time.
    files = process.num_fds()
    kinds = rng.choices(MIX, [kind.share for kind in MIX], k=num_requests)

    def submit(user: str) -> None:
        nonlocal num_asked
        kind = kinds[num_asked]
        ask = kind.make(rng)
        params = SamplingParams(**{"temperature": temperature, "seed": num_asked, **ask.params})
        name = "" if one_user else user
        request = engine.make_request(
            ask.prompt, params, id=f"{user} {num_asked}", priority=ask.priority, user=name, adapter=ask.adapter
        )
        live[request.id] = Live(ask, kind.name, request, engine.num_steps, [[] for _ in range(params.n)])
        engine.submit(request)
        waiting[user] += 1
        num_asked += 1

    def end(id: str) -> Live:
        one = live.pop(id)
        waiting[id.split()[0]] -= 1
        result.longest_steps = max(result.longest_steps, engine.num_steps - one.submitted_at)
        return one

    while num_asked < num_requests or live:
        for user, depth in USERS.items():
            while waiting[user] < depth and num_asked < num_requests:
                submit(user)
        everybody_asks = num_asked < num_requests
        for request, event in engine.step():
            user = request.id.split()[0]
            if isinstance(event, Output):
                live[request.id].tokens[event.index] += event.token_ids
                result.served[user] += len(event.token_ids) if everybody_asks else 0
                continue
            assert isinstance(event, Finished)
            one = end(request.id)
            result.finished[one.kind] += 1
            result.served[user] += event.prompt_tokens - event.cached_tokens if everybody_asks else 0
            if result.finished.total() % 20 == 0:
                result.answers.append((one.ask, request.params, one.tokens))
        for id, one in list(live.items()):
            if one.ask.patience is not None and sum(map(len, one.tokens)) >= one.ask.patience:
                engine.cancel(end(id).request)
                result.cancelled += 1
        if engine.num_steps % 25 == 0:
            engine.scheduler.check_integrity()
        if not memory and num_asked >= num_requests / 4:
            memory = process.memory_info().rss
    result.memory_growth = process.memory_info().rss - memory
    result.new_files = process.num_fds() - files
    return result
