"""Works on batches in the background, a few lines at a time, and gives way to all others (`SamplingFields.urgency`).

Every HTTP process has one; claims in the database keep them apart. The claim of a killed one runs out after ``lease``
seconds.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from wootz.core import WootzError
from wootz.gateway.gateway import Gateway
from wootz.gateway.surfaces.batch_run import BatchRun, Lost
from wootz.gateway.surfaces.batch_store import BatchStore
from wootz.gateway.surfaces.file_store import FileStore
from wootz.gateway.surfaces.kept_house import keep_house
from wootz.gateway.surfaces.responses import Responses
from wootz.telemetry.works import Work, at_work

log = logging.getLogger(__name__)

LEASE_SECONDS = 15.0
POLL_SECONDS = 1.0
MAX_BATCHES = 8
"""That are under way at a time; their lines take turns."""


class BatchWorker:
    def __init__(self, gateway: Gateway, *, lease: float = LEASE_SECONDS, poll: float = POLL_SECONDS) -> None:
        self.id = uuid.uuid4().hex
        self.gateway = gateway
        self.lease, self.poll = lease, poll
        self.batches = BatchStore(gateway.database, gateway.kept)
        self.files = FileStore.of(gateway)
        self.responses = Responses(gateway)
        self.folder = gateway.config.files_folder / "batches"
        self.places = asyncio.Semaphore(gateway.config.batches.concurrency)
        """First come, first served, so that a long batch does not keep a short one waiting."""

    async def run(self) -> None:
        """For ever; when cancelled, what was under way is given back for the next worker."""
        async with asyncio.TaskGroup() as group:
            runs = set[asyncio.Task[None]]()
            while True:
                try:
                    while len(runs) < MAX_BATCHES:
                        until = time.monotonic() + self.lease
                        if (claimed := await self.batches.claim(self.id, self.lease)) is None:
                            break
                        runs.add(task := group.create_task(self._run(BatchRun(self, claimed, until=until))))
                        task.add_done_callback(runs.discard)
                except WootzError as error:
                    log.warning("batches wait: %s", error)
                await asyncio.sleep(self.poll)

    async def _run(self, run: BatchRun) -> None:
        try:
            await run.go()
        except Lost:
            log.warning("batch %s: another worker has it", run.batch["id"])
        except WootzError as error:
            log.error("batch %s waits: %s", run.batch["id"], error)
        except Exception:
            log.exception("batch %s stopped; it will be taken up again", run.batch["id"])


@asynccontextmanager
async def working(gateway: Gateway) -> AsyncIterator[None]:
    """Batches are worked on inside of the block, and house is kept."""
    works: dict[str, Work] = {"batches": BatchWorker(gateway).run, "kept things": lambda: keep_house(gateway)}
    async with at_work(gateway.telemetry.metrics, works):
        yield
