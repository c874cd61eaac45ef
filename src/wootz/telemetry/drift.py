"""A model that gets worse without telling: a part of its answers is graded, and the week compared with those before.

Which answers is decided by a hash of the request's id, so every replica and every replay would take the same ones. An
answer is graded after its user has it, by a task that nobody waits for; of what was said only the grade is kept.

The alarm needs three things: the mean of the last 7 days is more than 5 % under that of the 28 before, both have enough
grades, and the difference is more than chance explains (one-sided, 1 in 100; Welch).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import fmean, variance
from typing import TypeVar

from prometheus_client import Gauge
from sqlalchemy import Column, Double, Index, String, Table, select
from sqlalchemy.dialects import postgresql, sqlite

from wootz.core import WootzError
from wootz.core.journey import ANYWHERE
from wootz.core.sections import DriftConfig
from wootz.core.wire import ChatChunk, ChatRequest, Completion, SamplingFields
from wootz.store import Base, Database, UtcDateTime
from wootz.telemetry.graders import Grader, Sample
from wootz.telemetry.metrics import Metrics
from wootz.telemetry.signals import Signals

log = logging.getLogger(__name__)

grades = Table(
    "grades",
    Base.metadata,
    Column("request_id", String, primary_key=True),
    Column("grader", String, primary_key=True),
    Column("model", String, nullable=False),
    Column("deployment", String),
    Column("graded_at", UtcDateTime, nullable=False),
    Column("score", Double, nullable=False),
    Index(None, "model", "graded_at"),
)
"""``model`` as it was asked for, ``deployment`` what answered."""

WEEK, HISTORY = timedelta(days=7), timedelta(days=28)
CERTAIN = 2.326
MAX_CHARS = 50_000
CONCURRENCY = 4
PATIENCE = 120.0
WATCH_SECONDS = 3600.0

Chunk = TypeVar("Chunk", ChatChunk, Completion)
Asked = TypeVar("Asked", bound=SamplingFields)


@dataclass(frozen=True, kw_only=True)
class Drift:
    """``week`` and ``history`` are mean scores; None where there is no grade."""

    model: str
    grader: str
    week: float | None
    week_count: int
    history: float | None
    history_count: int
    drop: float | None
    """Part of the history's mean that is lost; below 0 when it got better."""
    alarm: bool

    @property
    def words(self) -> str:
        return f'model "{self.model}": {self.week:.3f} this week, {self.history:.3f} before, by {self.grader}'


class DriftSampler:
    def __init__(self, config: DriftConfig, database: Database, grader_of: Callable[[], Grader | None]) -> None:
        """``grader_of`` is asked when there is something to grade: models are opened after the gateway is made."""
        self._config, self._database, self._grader_of = config, database, grader_of
        self._under_way = set[asyncio.Task[None]]()
        self.dropped = 0
        """Answers that were chosen but not graded, as too many were under way."""

    def wants(self, request: SamplingFields, request_id: str) -> bool:
        bound = request.journey.bounds != ANYWHERE  # A judge may be anywhere.
        if (
            not self._config.share
            or not isinstance(request, ChatRequest)
            or request.journey.lane != "interactive"
            or bound
        ):
            return False
        digest = hashlib.sha256(f"drift\0{request_id}".encode(errors="replace")).digest()
        return int.from_bytes(digest[:7], "big") / 2**56 < self._config.share

    def sampling(
        self, request: Asked, request_id: str, ask: Callable[[Asked], AsyncGenerator[Chunk, None]]
    ) -> Callable[[Asked], AsyncGenerator[Chunk, None]]:
        """``ask``, listened to where its answer is to be graded."""
        if not self.wants(request, request_id):
            return ask

        async def listened(asked: Asked) -> AsyncGenerator[Chunk, None]:
            parts, size, reason, calls, chunks = list[str](), 0, None, False, ask(asked)
            try:
                async for chunk in chunks:
                    for choice in chunk.choices:
                        delta = getattr(choice, "delta", None)
                        if choice.index == 0 and delta is not None:
                            if delta.content and size < MAX_CHARS:
                                parts.append(delta.content)
                                size += len(delta.content)
                            calls = calls or bool(delta.tool_calls)
                            reason = choice.finish_reason or reason
                    if chunk.usage is not None and isinstance(asked, ChatRequest):
                        self._send(asked, request_id, "".join(parts)[:MAX_CHARS], reason, calls)
                    yield chunk
            finally:
                await chunks.aclose()

        return listened

    def _send(self, request: ChatRequest, request_id: str, answer: str, reason: str | None, calls: bool) -> None:
        if len(self._under_way) >= CONCURRENCY:
            self.dropped += 1
            return
        answered = request.journey.answered_by
        sample = Sample(
            asked="\n\n".join(f"{message.role}: {message.text}" for message in request.messages)[-MAX_CHARS:],
            answer=answer,
            finish_reason=reason,
            wants_json=request.response_format is not None,
            calls_tools=calls,
        )
        row = {"request_id": request_id, "model": request.model, "deployment": answered and answered.deployment}
        task = asyncio.create_task(self._grade(sample, row), name="grade")
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _grade(self, sample: Sample, row: dict[str, str | None]) -> None:
        try:
            grader = self._grader_of()
            if grader is None:
                return
            async with asyncio.timeout(PATIENCE):
                score = await grader.grade(sample)
            if score is not None:
                await keep(
                    self._database, [row | {"grader": grader.name, "graded_at": datetime.now(UTC), "score": score}]
                )
                await Signals(self._database).note("quality", score, model=row["deployment"] or row["model"])
        except (WootzError, TimeoutError) as error:
            log.warning("an answer was not graded: %s", str(error) or "it took too long")
        except Exception:
            log.exception("an answer was not graded")

    async def watch(self, metrics: Metrics) -> None:
        """For ever: tell the log and Prometheus how the models do."""
        if not self._config.share:
            return
        scores = Gauge("wootz_quality_score", "Mean grade of 7 days.", ("model", "grader"), registry=metrics.registry)
        drops = Gauge(
            "wootz_quality_drop", "Part lost to the 28 days before.", ("model", "grader"), registry=metrics.registry
        )
        while True:
            try:
                for one in await drift(self._database, datetime.now(UTC), self._config):
                    if one.week is not None:
                        scores.labels(one.model, one.grader).set(one.week)
                    if one.drop is not None:
                        drops.labels(one.model, one.grader).set(one.drop)
                    if one.alarm:
                        log.warning("quality drifts: %s", one.words)
            except WootzError as error:
                log.warning("drift: %s", error)
            await asyncio.sleep(WATCH_SECONDS)

    async def close(self) -> None:
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)


async def keep(database: Database, rows: Sequence[dict]) -> None:
    insert = sqlite.insert if database.dialect == "sqlite" else postgresql.insert
    async with database.session() as session:
        await session.execute(insert(grades).on_conflict_do_nothing(), list(rows))


async def drift(database: Database, now: datetime, config: DriftConfig) -> list[Drift]:
    """Of each model that answered, by each grader; alarms first."""
    c = grades.c
    query = select(c.model, c.deployment, c.grader, c.graded_at, c.score).where(c.graded_at > now - WEEK - HISTORY)
    weeks: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    async with database.session() as session:
        for row in await session.execute(query.where(c.graded_at <= now)):
            before, lately = weeks.setdefault((row.deployment or row.model, row.grader), ([], []))
            (lately if row.graded_at > now - WEEK else before).append(row.score)
    found = [_compare(model, grader, lately, before, config) for (model, grader), (before, lately) in weeks.items()]
    return sorted(found, key=lambda one: (not one.alarm, one.model, one.grader))


def _compare(model: str, grader: str, lately: list[float], before: list[float], config: DriftConfig) -> Drift:
    week, history = (fmean(scores) if scores else None for scores in (lately, before))
    drop = 1 - week / history if week is not None and history else None
    enough = min(len(lately), len(before)) >= config.min_samples
    alarm = bool(enough and drop is not None and drop > config.drop and _more_than_chance(before, lately))
    return Drift(
        model=model, grader=grader, week=week, week_count=len(lately), history=history, history_count=len(before),
        drop=drop, alarm=alarm,
    )  # fmt: skip


def _more_than_chance(before: list[float], lately: list[float]) -> bool:
    error = math.sqrt(variance(before) / len(before) + variance(lately) / len(lately))
    return fmean(before) - fmean(lately) > CERTAIN * error
