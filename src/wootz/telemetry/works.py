"""What goes on beside the answering, for as long as a process lives: looking at engines, deleting what has expired,
working on batches.

Nobody waits for such a work, so nobody would miss one that has raised: what it did would stay undone, in silence. Here
it is told where it failed, counted (``wootz_work_failures_total``), and begun again, after a pause that doubles as long
as it fails at once.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio import sleep
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from wootz.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds. What went well for longer than the longest begins again with the first."""

Work = Callable[[], Awaitable[None]]


@asynccontextmanager
async def at_work(metrics: Metrics, works: Mapping[str, Work]) -> AsyncIterator[None]:
    """All of them go on inside of the block; at its end they are cancelled, and have ended when it is left."""
    tasks = [asyncio.create_task(_keep_up(metrics, name, work), name=name) for name, work in works.items()]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _keep_up(metrics: Metrics, name: str, work: Work) -> None:
    """Until it returns, or we are cancelled."""
    loop, us, pause = asyncio.get_running_loop(), asyncio.current_task(), FIRST_PAUSE
    while True:
        began = loop.time()
        try:
            return await work()
        except (Exception, asyncio.CancelledError):
            # One who waits for a task that somebody else cancelled is told so too, and goes on.
            if us is None or us.cancelling():
                raise
            if loop.time() - began > LONGEST_PAUSE:
                pause = FIRST_PAUSE
            metrics.work_failures.labels(name).inc()
            log.exception("%s failed; begun again in %g s", name, pause)
        await sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
