"""Tasks: pictures, videos, speech and transcripts that a `MediaModel` makes, from being handed in to their record.

A task's whole life is one request: admitted and held when it is handed in, recorded with what it cost when it has
ended, whoever asks for it meanwhile or nobody. Its row is durable before the client learns its id, and names the key
that made it: to every other key it does not exist. A server that stops leaves its tasks to the next (`resume`); the
record's id is the request's, so that none is counted twice.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import JSON, LargeBinary, func, insert, select, update
from sqlalchemy.orm import Mapped, mapped_column

from wootz.core import BadRequestError, NotFoundError, UnsupportedError, UpstreamError, WootzError
from wootz.core.media import ENDED, MediaModel, MediaRequest, MediaTask, Pace, SpeechModel, follow
from wootz.gateway.kept import Thing
from wootz.store import Base, Database, UtcDateTime

if TYPE_CHECKING:
    from wootz.gateway.gateway import Gateway
    from wootz.gateway.keys import Key
    from wootz.telemetry import Observation

log = logging.getLogger(__name__)

PACE = Pace(first=1.0, factor=1.5, longest=30.0, limit=24 * 3600.0)
"""From asking soon, for a picture takes seconds, to rarely; a client that asks itself wakes us (`Tasks.get`)."""


class TaskRow(Base):
    __tablename__ = "tasks"

    id: Mapped[str] = mapped_column(primary_key=True)
    key_id: Mapped[str | None] = mapped_column(index=True)
    request_id: Mapped[str]
    route: Mapped[str]
    model: Mapped[str]
    upstream_id: Mapped[str]
    status: Mapped[str]
    # These two are empty in the database, where they are sealed; `Tasks` fills them in.
    output: Mapped[dict[str, Any]] = mapped_column(JSON)
    urls: Mapped[list[str]] = mapped_column(JSON)
    usage: Mapped[dict[str, Any]] = mapped_column(JSON)
    submitted_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    sealed: Mapped[bytes | None] = mapped_column(LargeBinary)
    sealed_with: Mapped[str | None] = mapped_column(index=True)

    @property
    def thing(self) -> Thing:
        return Thing("task", self.key_id or "", self.id)

    @property
    def state(self) -> str:
        """``UNKNOWN`` from when its results are gone, as DashScope has it."""
        gone = self.expires_at is not None and self.expires_at <= datetime.now(UTC)
        return "UNKNOWN" if gone else self.status

    @property
    def ended(self) -> bool:
        return self.status in ENDED


class _LeftToTheNext(BaseException):
    """The server stops, the task goes on: no record yet. Not an `Exception`, so that nobody records it as a failure."""


@dataclass
class _Life:
    work: asyncio.Task[None]
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by a client that asks how far it is: so do we, then."""


class Tasks:
    def __init__(self, gateway: Gateway, database: Database, pace: Pace = PACE) -> None:
        self.gateway = gateway
        self.database = database
        self.pace = pace
        self._lives: dict[str, _Life] = {}
        self._stopping = False

    # --- for clients ----------------------------------------------------------------------------------------------

    async def submit(self, key: Key | None, request: MediaRequest, *, request_id: str, route: str) -> TaskRow:
        """Hand it in; its life goes on without the caller. Raises `WootzError`."""
        accepted: asyncio.Future[TaskRow] = asyncio.get_running_loop().create_future()
        accepted.add_done_callback(lambda told: told.cancelled() or told.exception())  # A caller may be gone by then.
        task_id = str(uuid.uuid4())
        self._begin(task_id, lambda life: self._live(life, task_id, key, request, request_id, route, accepted))
        return await asyncio.shield(accepted)

    async def wait(self, task_id: str) -> None:
        """Until it has ended and its record is left."""
        if (life := self._lives.get(task_id)) is not None:
            await asyncio.wait((life.work,))

    async def get(self, key: Key | None, task_id: str) -> TaskRow:
        """Raises `NotFoundError`, in the same words for a task that is not there and one of another key."""
        async with self.database.session() as session:
            row = await session.get(TaskRow, task_id[:64])
        if row is None or row.key_id != _id_of(key):
            raise NotFoundError(f'there is no task "{task_id[:64]}"', code="task_not_found")
        if (life := self._lives.get(row.id)) is not None:
            life.asked.set()
        return await self._opened(row)

    async def list(
        self,
        key: Key | None,
        *,
        page: int,
        size: int,
        status: str | None = None,
        model: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> tuple[list[TaskRow], int]:
        """The key's own, newest first: one page, and how many there are. What was made is told by `get`."""
        mine = TaskRow.key_id == _id_of(key) if key else TaskRow.key_id.is_(None)
        conditions = [mine]
        conditions += [TaskRow.status == status] if status else []
        conditions += [TaskRow.model == model] if model else []
        conditions += [TaskRow.submitted_at >= since] if since else []
        conditions += [TaskRow.submitted_at <= until] if until else []
        async with self.database.session() as session:
            total = await session.scalar(select(func.count()).select_from(TaskRow).where(*conditions))
            query = select(TaskRow).where(*conditions).order_by(TaskRow.submitted_at.desc(), TaskRow.id)
            rows = await session.scalars(query.offset((page - 1) * size).limit(size))
            return list(rows), total or 0

    async def cancel(self, key: Key | None, task_id: str) -> None:
        """Raises `BadRequestError` for one that is at work or has ended."""
        row = await self.get(key, task_id)
        if row.ended:
            raise BadRequestError(
                f"the task is {row.status}; only a waiting one can be cancelled", code="task_not_pending"
            )
        try:
            await self._media_model(row.model).cancel(row.upstream_id)
        except BadRequestError as error:
            raise BadRequestError(error.message, code="task_not_pending") from None

    async def download(self, row: TaskRow, url: str) -> bytes:
        return await self._media_model(row.model).download(url)

    # --- their lives ----------------------------------------------------------------------------------------------

    async def resume(self) -> None:
        """Take up what was under way when the last server stopped."""
        async with self.database.session() as session:
            rows = list(await session.scalars(select(TaskRow).where(TaskRow.status.not_in(ENDED))))
        for row in rows:
            self._begin(row.id, lambda life, row=row: self._live_on(life, row))

    async def close(self) -> None:
        self._stopping = True
        lives = [*self._lives.values()]
        for life in lives:
            life.asked.set()
        if lives:
            await asyncio.wait([life.work for life in lives], timeout=5)

    def _begin(self, task_id: str, live: Callable[[_Life], Any]) -> None:
        async def run() -> None:
            try:
                with suppress(_LeftToTheNext):
                    await live(self._lives[task_id])
            except WootzError:
                pass  # The record has it.
            except Exception:
                log.exception("task %s was lost sight of", task_id)
            finally:
                del self._lives[task_id]

        # The coroutine starts with the next turn of the loop, when its life is in the table.
        self._lives[task_id] = _Life(asyncio.create_task(run(), name=f"task {task_id}"))

    async def _live(
        self,
        life: _Life,
        task_id: str,
        key: Key | None,
        request: MediaRequest,
        request_id: str,
        route: str,
        accepted: asyncio.Future[TaskRow],
    ) -> None:
        try:
            async with self.gateway.make(key, request, request_id=request_id, route=route) as (model, observation):
                if not isinstance(model, MediaModel):
                    rest = ", and speaks only in a stream" if isinstance(model, SpeechModel) else " or speech"
                    raise UnsupportedError(f'model "{model.name}" makes no pictures, videos{rest}', param="model")
                await self.gateway.kept.key()  # Before it costs something.
                task = await model.submit(request)
                row = TaskRow(
                    id=task_id,
                    key_id=_id_of(key),
                    request_id=request_id,
                    route=route,
                    model=request.model,
                    upstream_id=task.id,
                    status="RUNNING" if task.ended else task.status,  # It has ended when its record is left.
                    output=task.output,
                    usage=task.usage,
                    urls=[],
                    submitted_at=datetime.now(UTC),
                )
                named = {column.name: getattr(row, column.name) for column in TaskRow.__table__.columns}
                async with self.database.session() as session:
                    await session.execute(insert(TaskRow), [named | await self.sealed(row)])
                if not task.ended:
                    accepted.set_result(row)
                task = await self._until_the_end(life, model, row, task, observation)
            row = await self._close(row, task)
            if not accepted.done():
                accepted.set_result(row)
        except BaseException as error:
            if not accepted.done():
                accepted.set_exception(error if isinstance(error, WootzError) else WootzError("the server is stopping"))
            raise

    async def _live_on(self, life: _Life, row: TaskRow) -> None:
        """A task of a server that is gone. Nobody admits it again: it was admitted, and is to be paid."""
        row, model = await self._opened(row), self._media_model(row.model)
        observation = self.gateway.telemetry.observe(
            request_id=row.request_id,
            route=row.route,
            key_id=row.key_id,
            model=row.model,
            provider=model.provider,
            stream=False,
        )
        task = MediaTask(id=row.upstream_id, status="RUNNING", output=row.output, usage=row.usage)
        try:
            task = await self._until_the_end(life, model, row, task, observation)
        except WootzError as error:
            await observation.end(error=error)
            raise
        await observation.end()
        await self._close(row, task)

    async def _until_the_end(
        self, life: _Life, model: MediaModel, row: TaskRow, task: MediaTask, observation: Observation
    ) -> MediaTask:
        async def sleep(seconds: float) -> None:
            await asyncio.sleep(self.pace.first)  # However often clients ask, an endpoint is asked no more often.
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds - self.pace.first):
                    await life.asked.wait()
            life.asked.clear()
            if self._stopping:
                raise _LeftToTheNext

        async def changed(now: MediaTask) -> None:
            if not now.ended:
                row.status, row.output = now.status, now.output
                await self._update(row, "status")

        try:
            task = await follow(model, task, self.pace, sleep=sleep, changed=changed)
        except WootzError as error:  # It can't be known what became of it.
            row.status, row.ended_at = "UNKNOWN", datetime.now(UTC)
            await self._update(row, "status", "ended_at")
            raise error
        observation.made(task.units, task.tokens)
        observation.finish_reason = task.status.lower()
        if task.status == "FAILED":
            await observation.end(error=failure_of(task))
        return task

    async def _close(self, row: TaskRow, task: MediaTask) -> TaskRow:
        """After its record: were the server killed in between, the record would be written again, to no effect."""
        row.status, row.output, row.usage = task.status, task.output, task.usage
        row.urls, row.ended_at, row.expires_at = [*task.urls], datetime.now(UTC), task.expires_at
        await self._update(row, "status", "usage", "ended_at", "expires_at")
        return row

    async def _update(self, row: TaskRow, *names: str) -> None:
        """These, and what is sealed."""
        values = {name: getattr(row, name) for name in names} | await self.sealed(row)
        async with self.database.session() as session:
            await session.execute(update(TaskRow).where(TaskRow.id == row.id).values(values))

    async def sealed(self, row: TaskRow) -> dict[str, Any]:
        """What was made, as the row has it in the database."""
        kept, said = self.gateway.kept, json.dumps([row.output, row.urls])
        return {"output": {}, "urls": []} | kept.seal(await kept.key(), row.thing, said)

    async def _opened(self, row: TaskRow) -> TaskRow:
        if (said := await self.gateway.kept.open(row.thing, row)) is not None:
            row.output, row.urls = json.loads(said)
        return row

    def _media_model(self, name: str) -> MediaModel:
        model = self.gateway.models.get(name)
        if not isinstance(model, MediaModel):
            raise UpstreamError(f'the model "{name}" is no longer there', code="upstream_refused")
        return model


def failure_of(task: MediaTask) -> WootzError:
    """Why it failed, in the endpoint's words."""
    code, message = task.output.get("code"), task.output.get("message")
    if code == "DataInspectionFailed":
        return BadRequestError(str(message), code="content_filter")
    return UpstreamError(f"the task failed: {message or code or 'no reason was given'}", code="task_failed")


def _id_of(key: Key | None) -> str | None:
    return key.id if key else None
