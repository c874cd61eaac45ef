"""A model that gets worse without telling: a part of its answers is graded, and the grades are signals.

Which answers is decided by a hash of the request's id, so every replica and every replay would take the same ones. An
answer is graded after its user has it, by a task that nobody waits for; of what was said only the grade is kept.

Whether a model got worse is for the alert rule ``quality-drift`` to say, here, in `wootz drift`, and to the pager: the
grades of its window against those of the weeks before, by the same grader.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime
from typing import TypeVar

from wootz.core import WootzError
from wootz.core.journey import ANYWHERE
from wootz.core.sections import DriftConfig
from wootz.core.wire import ChatChunk, ChatRequest, Completion, SamplingFields
from wootz.store import Database
from wootz.telemetry.alerts import Rule
from wootz.telemetry.alerts.evaluate import Baselines, evaluate
from wootz.telemetry.graders import Grader, Sample
from wootz.telemetry.metrics import Metrics
from wootz.telemetry.signals import Signals

log = logging.getLogger(__name__)

RULE = "quality-drift"
MAX_CHARS = 50_000
CONCURRENCY = 4
PATIENCE = 120.0
WATCH_SECONDS = 3600.0

Chunk = TypeVar("Chunk", ChatChunk, Completion)
Asked = TypeVar("Asked", bound=SamplingFields)


class DriftSampler:
    def __init__(self, config: DriftConfig, database: Database, grader_of: Callable[[], Grader | None]) -> None:
        """``grader_of`` is asked when there is something to grade: models are opened after the gateway is made."""
        self._config, self._database, self._grader_of = config, database, grader_of
        self._under_way = set[asyncio.Task[None]]()
        self.dropped = 0
        """Answers that were chosen but not graded, as too many were under way."""

    def wants(self, request: SamplingFields, request_id: str) -> bool:
        if not self._config.share or not isinstance(request, ChatRequest):
            return False
        bound = request.journey.bounds != ANYWHERE  # A judge may be anywhere.
        if bound or request.journey.lane != "interactive":
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
                        self._send(asked, "".join(parts)[:MAX_CHARS], reason, calls)
                    yield chunk
            finally:
                await chunks.aclose()

        return listened

    def _send(self, request: ChatRequest, answer: str, reason: str | None, calls: bool) -> None:
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
        model = answered.deployment if answered is not None else request.model
        task = asyncio.create_task(self._grade(sample, model), name="grade")
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _grade(self, sample: Sample, model: str) -> None:
        try:
            grader = self._grader_of()
            if grader is None:
                return
            async with asyncio.timeout(PATIENCE):
                score = await grader.grade(sample)
            if score is not None:
                await Signals(self._database).note("quality", score, subject=grader.name, model=model)
        except (WootzError, TimeoutError) as error:
            log.warning("an answer was not graded: %s", str(error) or "it took too long")
        except Exception:
            log.exception("an answer was not graded")

    async def watch(self, metrics: Metrics, rule: Rule) -> None:
        """For ever: tell Prometheus how the models do by ``rule``."""
        if not self._config.share:
            return
        baselines = Baselines()
        while True:
            try:
                async with self._database.session() as session:
                    found = await evaluate(session, rule, datetime.now(UTC), baselines)
            except WootzError as error:
                log.warning("drift: %s", error)
            else:
                for one in found:
                    metrics.quality_score.labels(one.subject).set(one.value)
                    metrics.quality_drop.labels(one.subject).set(1 - one.judged)
            await asyncio.sleep(WATCH_SECONDS)

    async def close(self) -> None:
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
