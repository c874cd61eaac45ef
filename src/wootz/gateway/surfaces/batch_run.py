"""One batch, from its input file to its output: each line answered once, also over a killed server.

What is done is written to a journal (`batch_journal`), a line as it ends; in the end the output file is made of it.
Whoever takes the batch up again reads the journal, drops a last line that was cut, and goes on with what is missing.
Whoever stood still for longer than a claim lasts writes no more. A line's request id is made of the batch's id and its
number, and the ledger keeps one row of an id: a line that was answered in the very moment of the end, and is asked
again, is recorded and charged once.
"""

from __future__ import annotations

import asyncio
import io
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, suppress
from math import isfinite
from typing import TYPE_CHECKING, Any, BinaryIO

from wootz.core import AuthenticationError, NotFoundError, RateLimitError, WootzError, collect_chat, collect_completion
from wootz.core.wire import ChatRequest, CompletionRequest, EmbeddingRequest
from wootz.gateway.kept import Thing
from wootz.gateway.keys import Key
from wootz.gateway.surfaces.batch_journal import OUTPUTS, Journal
from wootz.gateway.surfaces.batch_lines import Line, check_lines, read_lines, request_of
from wootz.gateway.surfaces.batch_store import Claim
from wootz.gateway.surfaces.surface import tell_whole
from wootz.store.sealed_file import DamagedFile

if TYPE_CHECKING:
    from wootz.gateway.surfaces.batch_worker import BatchWorker

MAX_RETRIES = 4
"""Of a line whose model fails for now. A rate limit is waited for as long as the batch lives."""
LONGEST_WAIT_SECONDS = 600.0
RENEW_SECONDS = 1.0


class Lost(Exception):
    """Another worker has the batch now."""


class BatchRun:
    """``until`` is how long the claim lasts, by `time.monotonic`."""

    def __init__(self, worker: BatchWorker, claim: Claim, *, until: float) -> None:
        self.worker, self.gateway = worker, worker.gateway
        self.claim, self.owner, self.batch = claim, claim.owner, claim.batch
        self._mine_until = until
        self._going: asyncio.Task[Any] | None = None
        self.stop = asyncio.Event()
        """Begin no more lines: it is cancelled."""
        self._saving = asyncio.Lock()
        """Saves come after one another, or an older state would stay."""
        self.journal = Journal(worker.folder / self.batch["id"], claim.key, claim.thing.context)
        self.taken: dict[str, int] = {}
        """Request ids that earlier attempts have used, and how those ended."""

    async def go(self) -> None:
        """To the end, or until cancelled; then the claim is given back."""
        self._going = asyncio.current_task()
        renewing = asyncio.create_task(self._renew(self._going))
        try:
            if self.batch["status"] == "cancelling":
                self._wants_to_stop()
            if self.batch["status"] == "validating":
                await self._validate()
            if self.batch["status"] in ("in_progress", "cancelling"):
                await self._answer_lines()
                self.batch["usage"] = await asyncio.to_thread(self.journal.usage)
                self.journal.close()
                await self._save("finalizing")
            if self.batch["status"] == "finalizing":
                await self._finish()
        except asyncio.CancelledError:
            renewing.cancel()
            await self.worker.batches.save(self.worker.id, self.claim, 0)
            raise
        finally:
            renewing.cancel()
            self.journal.close()

    async def _validate(self) -> None:
        max_bytes = self.gateway.config.server.max_body_bytes
        try:
            with closing(await self._input()) as file:
                total, errors = await asyncio.to_thread(check_lines, file, self.batch["endpoint"], max_bytes)
        except NotFoundError:
            total, errors = 0, [_unreadable("file_not_found", "the input file is gone")]
        except DamagedFile:
            total, errors = 0, [_unreadable("file_damaged", "the input file is not what was uploaded")]
        self.batch["request_counts"]["total"] = total
        if errors:
            self.batch["errors"] = {"object": "list", "data": errors}
        await self._save("failed" if errors else "in_progress", 0 if errors else None)

    async def _answer_lines(self) -> None:
        done, counts = self.journal.read(), self.batch["request_counts"]
        counts["completed"], counts["failed"] = len(done["output"]), len(done["error"])
        self.taken = await self.gateway.telemetry.ledger.statuses(f"{self.batch['id']}-")
        try:
            file = await self._input()
        except NotFoundError:  # Its user has deleted it, so nothing more is wanted than what is done.
            file = io.BytesIO()
        with closing(file):
            todo = self._not_in(done, file)
            async with asyncio.TaskGroup() as group:
                for _ in range(self.gateway.config.batches.concurrency):
                    group.create_task(self._answer_some(todo))
            if self._expired:
                self.batch["expired_at"] = int(time.time())
                message = "the batch's completion window ended before this line was begun"
                file.seek(0)
                for line in self._not_in(self.journal.read(), file):  # Also those that were begun in vain.
                    self._write(line, None, {"code": "batch_expired", "message": message})

    def _not_in(self, done: dict[str, set[str]], file: BinaryIO) -> Iterator[Line]:
        lines = read_lines(file, self.batch["endpoint"], self.gateway.config.server.max_body_bytes)
        return (line for line in lines if not any(line.custom_id in ids for ids in done.values()))

    async def _answer_some(self, todo: Iterator[Line]) -> None:
        for line in todo:
            if self.stop.is_set() or self._expired:
                return
            answered = await self._answer(line)
            if time.monotonic() >= self._mine_until:
                return self._give_up()
            if answered is not None:
                self._write(line, answered, None)

    def _give_up(self) -> None:
        """This process stood still for longer than its claim lasted, and somebody else may be writing."""
        if self._going is not None:
            self._going.cancel()

    async def _answer(self, line: Line) -> dict[str, Any] | None:
        """OpenAI's ``response``; None when it is to stop before there is one."""
        for attempt in range(1, 10_000):
            id = f"{self.batch['id']}-{line.number}" + (f"-{attempt}" if attempt > 1 else "")
            if self.taken.get(id, 200) != 200:
                continue
            try:
                async with self.worker.places:
                    body = await self._ask(line, id)
                return {"status_code": 200, "request_id": id, "body": body}
            except WootzError as error:
                wait = _wait(error, attempt)
                if wait is None:
                    return {"status_code": error.status, "request_id": id, "body": error.to_openai()}
            with suppress(TimeoutError):
                await asyncio.wait_for(self.stop.wait(), wait)
            if self.stop.is_set() or self._expired:
                return None
        return None

    async def _ask(self, line: Line, id: str) -> dict[str, Any]:
        """The gateway's whole answer to one line, on the path of every other request."""
        gateway, key, route = self.gateway, await self._key(), self.batch["endpoint"]
        match request_of(route, line.body):
            case ChatRequest() as request:
                request.journey.lane = "batch"
                answer = await collect_chat(gateway.chat(key, request, request_id=id, route=route))
            case CompletionRequest() as request:
                request.journey.lane = "batch"
                answer = await collect_completion(gateway.complete(key, request, request_id=id, route=route))
            case EmbeddingRequest() as request:
                request.journey.lane = "batch"
                answer = await gateway.embed(key, request, request_id=id, route=route)
            case request:
                chat = await self.worker.responses.chat_of(key, request)
                chat.journey.lane = "batch"
                return await tell_whole(*self.worker.responses.answer(key, request, chat, id))
        return answer.model_dump(mode="json")

    async def _key(self) -> Key | None:
        """As it is now: what was revoked since answers nothing."""
        if self.gateway.keys is None:
            return None
        try:
            key = await self.gateway.keys.get(self.owner)
        except NotFoundError:
            raise AuthenticationError("the batch has no key") from None
        if key.revoked_at is not None or (key.expires_at is not None and key.expires_at.timestamp() <= time.time()):
            raise AuthenticationError("the batch's key was revoked or has expired", code="api_key_revoked")
        return key

    def _write(self, line: Line, response: dict[str, Any] | None, error: dict[str, Any] | None) -> None:
        good = response is not None and response["status_code"] == 200
        id = f"batch_req_{self.batch['id'].removeprefix('batch_')}_{line.number}"
        self.journal.append(
            OUTPUTS[not good], {"id": id, "custom_id": line.custom_id, "response": response, "error": error}
        )
        self.batch["request_counts"]["completed" if good else "failed"] += 1

    async def _finish(self) -> None:
        for name in OUTPUTS:
            self.batch[f"{name}_file_id"] = await self._keep_output(name)
        self.journal.remove()
        ends = {"cancelled": "cancelling_at", "expired": "expired_at"}
        await self._save(next((end for end, time in ends.items() if self.batch.get(time)), "completed"), 0)

    async def _keep_output(self, name: str) -> str | None:
        """The journal becomes a file of its user's, under an id that is the same however often this is done."""
        files, journal = self.worker.files, self.journal
        thing = Thing("file", self.owner, f"file-{uuid.uuid5(uuid.NAMESPACE_OID, self.batch['id'] + name).hex}")
        if journal.is_empty(name):
            return thing.id if files.path(thing.id).exists() else None
        seconds = (self.batch.get("output_expires_after") or {}).get("seconds")
        label = f"{self.batch['id']}_{name}.jsonl"
        await files.write(
            thing, self.claim.key, journal.lines(name), filename=label, purpose="batch_output", expires_after=seconds
        )
        return thing.id

    async def _input(self) -> BinaryIO:
        """Raises `NotFoundError`."""
        files = self.worker.files
        return await files.open(await files.get(self.owner, self.batch["input_file_id"]))

    @property
    def _expired(self) -> bool:
        return time.time() >= self.batch["expires_at"]

    # --- the claim ------------------------------------------------------------------------------------------------

    async def _save(self, status: str | None = None, seconds: float | None = None) -> None:
        """Raises `Lost`."""
        async with self._saving:
            self.batch["status"] = status = status or self.batch["status"]
            self.batch[f"{status}_at"] = self.batch.get(f"{status}_at") or int(time.time())
            seconds = self.worker.lease if seconds is None else seconds
            until = time.monotonic() + seconds
            now = await self.worker.batches.save(self.worker.id, self.claim, seconds)
        if now is None:
            raise Lost
        self._mine_until = until
        if now == "cancelling":
            self._wants_to_stop()

    async def _renew(self, task: asyncio.Task[Any] | None) -> None:
        """Now and then, with how far it has come."""
        while True:
            await asyncio.sleep(min(RENEW_SECONDS, self.worker.lease / 3))
            try:
                await self._save()
            except Lost:
                if task is not None:
                    task.cancel()
                return
            except WootzError:
                continue  # The database is away; the claim may last until it is back.

    def _wants_to_stop(self) -> None:
        self.batch["cancelling_at"] = self.batch.get("cancelling_at") or int(time.time())
        if self.batch["status"] == "validating":
            self.batch["status"] = "cancelling"
        self.stop.set()


def _unreadable(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "message": message, "param": None, "line": None}


def _wait(error: WootzError, attempt: int) -> float | None:
    """Seconds until the line may be asked again; None when that would not help."""
    if isinstance(error, RateLimitError):  # Its time may be infinite: a budget that is never filled again.
        return min(max(error.retry_after, 0.1), LONGEST_WAIT_SECONDS) if isfinite(error.retry_after) else None
    return 2.0**attempt if error.retryable and attempt <= MAX_RETRIES else None
