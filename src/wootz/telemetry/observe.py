"""Watch one request from its start to its end, and leave its record: a ledger row, a span, and metrics.

async with telemetry.observe(request_id=…, route=…, key_id=…, model=…, provider=…, stream=True) as observation:
    async for chunk in model.chat(request):
        observation.chunk()
        …
    observation.usage(usage)
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextvars import Context, copy_context
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal

import msgspec
from opentelemetry.sdk.trace import TracerProvider
from pydantic import BaseModel

from wootz.core import PriceConfig, WootzError
from wootz.core.journey import Journey
from wootz.core.media import MediaRequest
from wootz.core.wire import Usage
from wootz.engine.protocol import Stats
from wootz.telemetry.bodies import BodyCollector, BodyStore, SealedBody
from wootz.telemetry.journal import HITS, MAX_TOOLS, queue_time, storable, tags_of, timeline_of
from wootz.telemetry.ledger import Ledger
from wootz.telemetry.metrics import Metrics, model_label
from wootz.telemetry.price_book import PriceBook
from wootz.telemetry.prices import Tokens, cost, cost_of_units
from wootz.telemetry.prompt_hash import Hashes
from wootz.telemetry.record import RequestRecord
from wootz.telemetry.refusals import Ear
from wootz.telemetry.signals import Signals
from wootz.telemetry.spans import is_exported, leave_span, otlp_provider, tracer_of
from wootz.telemetry.under_way import Owed, UnderWay

log = logging.getLogger(__name__)

MAX_NAME_CHARS = 128
CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that went away; nobody receives it, the ledger shows it."""


@dataclass(frozen=True)
class KeepBodies:
    store: BodyStore
    days: int
    max_bytes: int


class Telemetry:
    """``prices`` is a price book, or prices per model name.

    Spans go to ``otlp_endpoint`` where it is given, else to ``tracer_provider``, else to the process's own.
    """

    def __init__(
        self,
        ledger: Ledger,
        prices: PriceBook | Mapping[str, PriceConfig],
        otlp_endpoint: str | None = None,
        *,
        service_name: str = "wootz",
        tracer_provider: TracerProvider | None = None,
        keep_bodies: KeepBodies | None = None,
        hash_prompt: Callable[[BaseModel], Hashes] | None = None,
        under_way: UnderWay | None = None,
    ) -> None:
        """``under_way`` keeps what is being answered over a kill."""
        self.ledger = ledger
        self.under_way = under_way
        self.prices = prices if isinstance(prices, PriceBook) else PriceBook(prices)
        self.keep_bodies = keep_bodies
        self.hash_prompt = hash_prompt
        self.metrics = Metrics()
        self._provider = otlp_provider(otlp_endpoint, service_name) if otlp_endpoint else tracer_provider
        self.tracer = tracer_of(self._provider)
        self._uncounted: list[tuple[RequestRecord, Context]] = []
        self.signals = Signals(ledger.database)

    def observe(
        self,
        *,
        request_id: str,
        route: str,
        key_id: str | None,
        model: str,
        provider: str | None,
        stream: bool,
        user: str | None = None,
        journey: Journey | None = None,
        metadata: Any = None,
        body: BaseModel | None = None,
    ) -> Observation:
        """Begin. ``provider`` is None when no model of that name is configured (see `model_label`); ``journey`` is the
        request's, ``metadata`` what the client says the request is for, ``body`` what is kept where bodies are."""
        begun = RequestRecord(
            request_id=request_id,
            started_at=datetime.now(UTC),
            route=route,
            key_id=key_id,
            model=model,
            provider=provider,
            stream=stream,
            status=0,
            user=user,
        )
        is_task = isinstance(body, MediaRequest) and not body.stream
        again = is_task or (journey is not None and journey.lane == "batch")
        if self.under_way is not None and not again:  # Tasks and batch lines go on elsewhere, under the same id.
            self.under_way.begin(begun)
        keep = self.keep_bodies
        kept = BodyCollector(body, keep.max_bytes, keep.days) if keep is not None and body is not None else None
        return Observation(self, begun, journey or Journey(), metadata, body, kept)

    async def tripped(self, guard: str, journey: Journey, *, injection: bool = False) -> None:
        """For guards: one changed or refused a request or an answer; ``injection``, as an attempt to instruct the
        model from within its data. Counted, and kept with who asked, so that a caller who keeps trying is noticed."""
        self.metrics.guardrail_trips.labels(guard).inc()
        who = {"user": journey.user or None, "key_id": journey.caller or None}
        kinds = ("guardrail_trip", "injection_attempt") if injection else ("guardrail_trip",)
        await self.signals.note_all([{"kind": kind, "subject": guard, **who} for kind in kinds])

    def metrics_text(self) -> bytes:
        """Prometheus exposition."""
        self._count()
        return self.metrics.text()

    def count(self, record: RequestRecord) -> None:
        """In the loop's next turn, when what this one was for is on its way: nobody's answer waits for metrics and
        spans."""
        self._uncounted.append((record, copy_context()))
        if len(self._uncounted) == 1:
            asyncio.get_running_loop().call_soon(self._count)

    def _count(self) -> None:
        uncounted, self._uncounted = self._uncounted, []
        has_spans = is_exported(self.tracer)
        for record, context in uncounted:
            self.metrics.count(record)
            if has_spans:
                context.run(leave_span, self.tracer, record)

    def set_engine_stats(self, model: str, stats: Stats | None) -> None:
        """What the model's engine last said of itself; None when it doesn't answer."""
        self.metrics.engines.stats[model] = stats

    def set_breaker(self, deployment: str, state: Literal["closed", "half-open", "open"]) -> None:
        self.metrics.breakers.labels(deployment).set(("closed", "half-open", "open").index(state))

    async def close(self) -> None:
        """Wait for the ledger's last rows and send the last spans."""
        await self.ledger.close()
        self._count()
        if self.under_way is not None:
            self.under_way.close()
        if self._provider is not None:
            await asyncio.to_thread(self._provider.shutdown)


UNSETTLED = "request %s is in the ledger but not in its limits"


class Observation:
    """One request, from `Telemetry.observe` to `end`. Set ``finish_reason`` and ``guarantee`` when they are known, and
    add the answer's choices to ``body``, which is None where none is kept.

    As a context manager it leaves its record whatever way the block ends. Unforeseen exceptions become a bare 500."""

    def __init__(
        self,
        telemetry: Telemetry,
        begun: RequestRecord,
        journey: Journey,
        metadata: Any,
        prompt: BaseModel | None,
        body: BodyCollector | None,
    ) -> None:
        self.finish_reason: str | None = None
        self.guarantee: str | None = None
        self.body = body
        self._telemetry = telemetry
        self._begun = begun
        self._journey = journey
        self._metadata = metadata
        self.ear = Ear()
        self._tools: dict[str, None] = {}
        self._usage = Usage()
        self._units = Decimal(0)
        self._num_tokens = self._num_first_tokens = 0
        self._first = self._last = 0.0
        self._left: RequestRecord | asyncio.Future[RequestRecord] | None = None
        self.settle: Callable[[RequestRecord], Awaitable[None] | None] | None = None
        """What is to be told of the record before it is kept: the limits, of what was used. None: they know already."""
        self.owed: Callable[[RequestRecord], Owed] | None = None
        """The same as data, for who settles it when this process is killed before it did."""
        self._unhashed = prompt if telemetry.hash_prompt is not None else None
        self._hashes: Hashes | None = None
        if self._unhashed is not None:  # While the model is at work.
            asyncio.get_running_loop().call_soon(self._hash)
        self._label = model_label(begun)
        telemetry.metrics.in_flight.counts[self._label] += 1
        self._started = time.perf_counter()

    async def __aenter__(self) -> Observation:
        return self

    async def __aexit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        match error:
            case None:
                await self.end()
            case WootzError():
                await self.end(error=error)
            case asyncio.CancelledError() | GeneratorExit():
                await self.end(client_disconnected=True)
            case Exception():
                log.exception("request %s to model %s failed", self.request_id, self._begun.model)
                error = WootzError(f"the server failed; its log tells more under {self.request_id}")
                await self.end(error=error)
                raise error from None

    @property
    def request_id(self) -> str:
        return self._begun.request_id

    def chunk(self, num_tokens: int = 1) -> None:
        """Content arrived (not the opening chunk with only a role): marks the first token and the time since."""
        now = self._last = time.perf_counter()
        self._num_tokens += num_tokens
        if not self._first:
            self._first, self._num_first_tokens = now, self._num_tokens

    def tool_calls(self, calls: list[dict[str, Any]]) -> None:
        """Fragments of calls in the answer; the first of each names its function."""
        for call in calls:
            name = (call.get("function") or {}).get("name")
            if name and len(self._tools) < MAX_TOOLS:
                self._tools[storable(str(name), MAX_NAME_CHARS)] = None

    def usage(self, usage: Usage) -> None:
        self._usage = usage

    def made(self, units: Decimal, tokens: Usage | None = None) -> None:
        """What was made, counted as it is charged: images, seconds, characters, or ``tokens`` where there are some and
        its price is not by the unit."""
        begun = self._begun
        price = self._telemetry.prices.find(begun.model, begun.provider or "", begun.started_at)
        if tokens is not None and tokens.total_tokens and not (price and price.unit):
            self._usage = tokens
        else:
            self._units = units

    async def end(
        self, status: int = 200, error: WootzError | None = None, client_disconnected: bool = False
    ) -> RequestRecord:
        """Leave the record; it is durable when this returns. Only the first call counts.

        An ``error`` gives status and code. A caller cancelled in here has still left the record. When the database is
        out of reach the answer is not held up for long: see `Ledger.write`; the record is then in the log.
        """
        if self._left is None:
            record = self._record(status, error, client_disconnected)
            self._telemetry.metrics.in_flight.counts[self._label] -= 1
            self._telemetry.count(record)
            rest = self._keep(record)
            self._left = record if rest is None else asyncio.ensure_future(rest)
        return self._left if isinstance(self._left, RequestRecord) else await asyncio.shield(self._left)

    def _keep(self, record: RequestRecord) -> Coroutine[Any, Any, RequestRecord] | None:
        """Begin to keep it; what is left of that, if there is something to wait for."""
        under_way = self._telemetry.under_way
        is_safe = under_way is not None and under_way.ended(record, self.owed and self.owed(record))
        settling = self._settle(record)
        may_wait = is_safe and settling is None and self.body is None
        if may_wait and self._telemetry.ledger.write_behind(record, self._kept):
            return None
        return self._keep_on(record, settling)

    async def _keep_on(self, record: RequestRecord, settling: Awaitable[None] | None) -> RequestRecord:
        if settling is not None:
            try:
                await settling
            except Exception:
                log.exception(UNSETTLED, record.request_id)
        body = await self._sealed(record, self.body) if self.body is not None else None
        try:
            await self._telemetry.ledger.write(record, body)
        except Exception:
            self._telemetry.metrics.rows_lost.inc()  # The ledger has logged the record and the reason.
        if self._telemetry.under_way is not None:
            self._telemetry.under_way.kept(record.request_id)
        return record

    def _settle(self, record: RequestRecord) -> Awaitable[None] | None:
        try:
            return self.settle(record) if self.settle is not None else None
        except Exception:
            log.exception(UNSETTLED, record.request_id)
            return None

    def _kept(self, error: Exception | None) -> None:
        if error is not None:
            self._telemetry.metrics.rows_lost.inc()
        if self._telemetry.under_way is not None:
            self._telemetry.under_way.kept(self.request_id)

    async def _sealed(self, record: RequestRecord, body: BodyCollector) -> SealedBody | None:
        """Without a key nothing of it is kept, and the record as ever."""
        keep = self._telemetry.keep_bodies
        try:
            # Redacting a long text takes its time, which is not the other requests' to pay.
            said = await asyncio.to_thread(body.finish, record)
            return await keep.store.seal(record, said) if keep is not None else None
        except WootzError as error:
            log.error("request %s: what was said is not kept: %s", record.request_id, error)
        except Exception:
            log.exception("request %s: what was said is not kept", record.request_id)
        self._telemetry.metrics.bodies_lost.inc()
        return None

    def _hash(self) -> None:
        if self._unhashed is not None and self._telemetry.hash_prompt is not None:
            self._hashes, self._unhashed = self._telemetry.hash_prompt(self._unhashed), None

    def _record(self, status: int, error: WootzError | None, client_disconnected: bool) -> RequestRecord:
        if error is not None:
            status = error.status
        elif client_disconnected:
            status = CLIENT_CLOSED_REQUEST
        num_later_tokens = self._num_tokens - self._num_first_tokens
        journey, usage = self._journey, self._usage
        self._hash()
        prompt_hash, prompt_chars, template_hash = self._hashes or (None, None, None)
        return msgspec.structs.replace(
            self._begun,
            status=status,
            error_code=error.code if error is not None else None,
            finish_reason=self.finish_reason,
            refused=self.ear.hears_refusal or "content_filter" in (self.finish_reason, error and error.code),
            guarantee=self.guarantee,
            arithmetic=journey.arithmetic,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            cache_write_tokens=usage.cache_write_tokens,
            completion_tokens=usage.completion_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            time_to_first_token=self._first - self._started if self._first else None,
            inter_token_latency=(self._last - self._first) / num_later_tokens if num_later_tokens else None,
            queue_time=queue_time(journey),
            duration=time.perf_counter() - self._started,
            client_disconnected=client_disconnected,
            user=journey.user or self._begun.user,
            prompt_hash=prompt_hash,
            prompt_chars=prompt_chars,
            template_hash=template_hash,
            team_id=journey.team or None,
            tags=tags_of(journey, self._metadata),
            lane=journey.lane,
            cache=journey.cache,
            tools=tuple(self._tools),
            **self._answered(),
        )

    def _answered(self) -> dict[str, Any]:
        """What answered, and what all of it cost."""
        begun, journey, prices = self._begun, self._journey, self._telemetry.prices
        timeline = timeline_of(journey, self._usage, prices, begun.started_at)
        fields: dict[str, Any] = {"timeline": timeline, "num_attempts": len(journey.attempts)}
        if attempts := timeline.attempts:
            answer = next((one for one in reversed(attempts) if one.error_code is None), attempts[-1])
            fields |= {
                "deployment": answer.deployment,
                "provider": answer.provider,
                "price": answer.price,
                "cost": sum((one.cost for one in attempts), Decimal(0)),
                "priced": all(one.price or not (one.prompt_tokens or one.completion_tokens) for one in attempts),
            }
        elif begun.provider is not None and journey.cache not in HITS:
            tokens = Tokens.of(self._usage)
            price = prices.find(begun.model, begun.provider, begun.started_at, tokens.prompt)
            fields |= {
                "deployment": begun.model,
                "price": price.version if price else None,
                "cost": cost(tokens, price, journey.lane) + cost_of_units(self._units, price),
                "priced": bool(price and price.unit) if self._units else price is not None or not tokens.any,
            }
        return fields
