"""What a request may use up is held before it is answered, and settled to what it used, whatever way it ended.

One reservation covers every counter that applies: those of the key and of its team, user and tags. It is taken as a
whole or not at all, so parallel requests can't spend the same dollar twice. Settling belongs to leaving the record
(`Observation.settle`): what the counters get is what the ledger gets.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from decimal import Decimal
from typing import Any

from wootz.core import BadRequestError, Config, LanguageModel, RateLimitError, resolve_secret
from wootz.core.media import MediaRequest
from wootz.core.sections import LimitsConfig
from wootz.core.tool_wire import ModelRequest
from wootz.core.wire import Usage, new_id
from wootz.gateway.keys import Key, KeyStore
from wootz.gateway.limits.conversations import conversation_meters
from wootz.gateway.limits.estimate import dearest, estimate, of_media
from wootz.gateway.limits.ledger_sums import LedgerSums
from wootz.gateway.limits.memory import MemoryCounters
from wootz.gateway.limits.meters import (
    Counters,
    CountersUnavailable,
    Meter,
    Use,
    Verdict,
    meters_of,
    to_picodollars,
)
from wootz.gateway.limits.redis import RedisCounters
from wootz.gateway.limits.rules import Subject
from wootz.telemetry import Observation, RequestRecord, Telemetry

WORDS = {
    "requests_per_minute": "{limit:,} requests a minute",
    "tokens_per_minute": "{limit:,} tokens a minute",
    "tokens_per_day": "{limit:,} tokens a day",
    "concurrent_requests": "{limit:,} requests at once",
    "budget_exceeded": "{usd} USD",
    "conversation_steps": "{limit:,} requests a day",
    "conversation_budget": "{usd} USD a day",
}

ALL_FREE_AGAIN = "1m1s"
"""As OpenAI writes it: after that long without a request, a minute's limit is whole again."""

NO_USAGE, NO_USD = Usage(), Decimal(0)

LATEST_SECONDS = 500.0
"""Counters remember for a little longer what was settled; what is settled after that could count twice."""


class Limiter:
    """``wall`` is Unix time, by which periods begin."""

    def __init__(
        self,
        counters: Counters,
        seed: LedgerSums,
        telemetry: Telemetry,
        config: LimitsConfig,
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.counters = counters
        self._seed = seed
        self._telemetry = telemetry
        self._config = config
        self._wall = wall

    @classmethod
    def of(cls, config: Config, keys: KeyStore | None, telemetry: Telemetry) -> Limiter:
        """As ``[limits]`` says. Without accounts there is nobody to limit."""
        url = config.limits.redis and resolve_secret(config.limits.redis, used_by="limits.redis")
        counters = RedisCounters(url) if url and keys else MemoryCounters()
        ledger = telemetry.ledger
        return cls(counters, LedgerSums(ledger, keys or KeyStore(ledger.database)), telemetry, config.limits)

    async def hold(
        self, key: Key | None, request: ModelRequest, model: LanguageModel, observation: Observation
    ) -> None:
        """Reserve, and see to it that it is settled when the observation ends.

        Raises `RateLimitError` (its ``code`` says which limit), `BadRequestError` for what no limit could ever let by,
        and `CountersUnavailable` where the counters are gone and the config says that nothing passes then.
        """
        if key is None or not key.limited:
            return
        usage, usd = self._likely(key, request, model)
        meters = self._meters(key, request, usage, usd)
        for meter in meters:
            if meter.amount > meter.limit:
                raise _never(meter, usage)
        counts_money = any(meter.is_money for meter in meters)
        # A batch line that a killed server had begun is asked again under the same id, and counted once.
        id = f"hold-{observation.request_id}" if request.journey.lane == "batch" else new_id("hold")

        def used(record: RequestRecord) -> list[tuple[Meter, int]]:
            tokens = record.prompt_tokens + record.completion_tokens
            picodollars = to_picodollars(record.cost) if counts_money else 0
            return [(meter, meter.used(tokens, picodollars)) for meter in meters]

        def settle(record: RequestRecord) -> Awaitable[None] | None:
            return self.counters.settle(id, used(record))

        def owed(record: RequestRecord) -> list[Any]:
            return [id, self._wall(), [part for meter, amount in used(record) for part in meter.settlement(amount)]]

        try:
            verdict = await self.counters.reserve(id, meters, self._seed)
        except CountersUnavailable:
            if any(self._closed(meter) for meter in meters):
                raise
            request.journey.notes.append("limits: not checked, their Redis is out of reach")
            verdict = Verdict()
        if (refused_by := verdict.refused_by) is not None:
            # By kind only: the note stays in the ledger when a person is erased.
            request.journey.notes.append(f"limits: refused by {refused_by.limit_name} of its {refused_by.subject.kind}")
            if refused_by.subject.kind == "conversation":
                self._telemetry.metrics.capped_conversations.labels(refused_by.limit_name).inc()
            raise _refusal(refused_by, verdict.retry_after)
        observation.settle, observation.owed = settle, owed if self.counters.outlasts_us else None
        request.journey.answer_headers.update(_headers(meters, verdict.left))

    async def settle_for(self, owed: Sequence[Any]) -> None:
        """For a process that was killed before it settled what it wrote down as ``owed``.

        Raises `CountersUnavailable`.
        """
        id, ended, settlement = owed
        if (ago := max(0.0, self._wall() - ended)) < LATEST_SECONDS:
            await self.counters.settle_late(id, ago, settlement)

    async def uses(self, subjects: Iterable[Subject]) -> list[Use]:
        """How much of each of their limits is used and held now."""
        now = self._wall()
        meters: list[Meter] = []
        for subject in subjects:
            meters += meters_of(subject, now, 0, 0)
            if subject.limits.of_conversations:
                for conversation in await self._seed.conversations(subject, now):
                    meters += conversation_meters(subject, conversation, now, 0)
        if not meters:
            return []
        counted = await self.counters.read(meters)
        return [
            Use(meter, *(found or (await self._seed(meter), 0))) for meter, found in zip(meters, counted, strict=True)
        ]

    def _likely(self, key: Key, request: ModelRequest, model: LanguageModel) -> tuple[Usage, Decimal]:
        """The tokens and the USD that it may take, where any limit counts them."""
        prices, now = self._telemetry.prices, self._wall()
        if isinstance(request, MediaRequest):
            return of_media(model, request, prices, now)
        usage, usd = NO_USAGE, NO_USD
        if key.counts_tokens:
            usage = estimate(request, self._config.assumed_completion_tokens)
        if key.counts_money:
            usd = dearest(model, usage, prices, now, request.journey.lane)
        return usage, usd

    def _meters(self, key: Key, request: ModelRequest, usage: Usage, usd: Decimal) -> list[Meter]:
        tokens, now, picodollars = usage.total_tokens, self._wall(), to_picodollars(usd) if usd else 0
        meters = [meter for subject in key.limited for meter in meters_of(subject, now, tokens, picodollars)]
        if conversation := request.journey.conversation:
            for subject in key.limited:
                if subject.limits.of_conversations:
                    meters += conversation_meters(subject, conversation, now, picodollars)
        return meters

    def _closed(self, meter: Meter) -> bool:
        if meter.kind == "period":
            return self._config.budgets_without_redis == "closed"
        return self._config.rates_without_redis == "closed"


def _limit(meter: Meter) -> str:
    usd = f"{(Decimal(meter.limit) / 10**12).normalize():f}" if meter.is_money else ""
    return WORDS[meter.limit_name].format(limit=meter.limit, usd=usd)


def _never(meter: Meter, usage: Usage) -> BadRequestError:
    return BadRequestError(
        f"this request may take {usage.total_tokens:,} tokens (about {usage.prompt_tokens:,} to read and at most "
        f"{usage.completion_tokens:,} to write), and {meter.subject} may use {_limit(meter)} in all",
        code="request_exceeds_limit",
        param="max_tokens",
        hint="set a smaller max_tokens or send less",
    )


def _refusal(meter: Meter, retry_after: float) -> RateLimitError:
    limits = meter.subject.limits
    if meter.limit_name == "budget_exceeded":
        period = "" if limits.budget_period == "never" else f"{limits.budget_period} "
        message = f"{meter.subject} has used up its {period}budget of {_limit(meter)}, or holds the rest of it"
    else:
        message = f"{meter.subject} may use {_limit(meter)}"
    error = RateLimitError(message, retry_after=retry_after, code=meter.limit_name)
    error.headers = _headers([meter], [0])
    return error


def _headers(meters: Sequence[Meter], left: Sequence[int]) -> dict[str, str]:
    """OpenAI's ``x-ratelimit-…`` of the minute, of whichever subject has least left."""
    headers: dict[str, str] = {}
    tightest: dict[str, int] = {}
    for meter, remaining in zip(meters, left, strict=False):
        if meter.kind == "window":
            what = meter.limit_name.partition("_")[0]
            if remaining < tightest.get(what, remaining + 1):
                tightest[what] = remaining
                headers[f"x-ratelimit-limit-{what}"] = str(meter.limit)
                headers[f"x-ratelimit-remaining-{what}"] = str(max(remaining, 0))
                headers[f"x-ratelimit-reset-{what}"] = ALL_FREE_AGAIN
    return headers
