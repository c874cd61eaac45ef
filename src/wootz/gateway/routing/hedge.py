"""Two attempts race: when the first is slower to begin than 95 in 100 of its answers were, a second one is asked.

The first to have content answers; the other is stopped at once. Both are on the journey. A provider has most likely
read a stopped request's prompt, and bills it, so its prompt is counted as long as the winner's.

Source: J. Dean, L. A. Barroso, *The Tail at Scale*, 2013 ("hedged requests").
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar

from wootz.core import WootzError
from wootz.gateway.routing.call import Call

Item = TypeVar("Item")


async def race(first: Call[Any], after: float, second: Callable[[], Call[Any] | None], seconds: float) -> Call[Any]:
    """The call that has begun; the one that was stopped for it is its ``stopped``. ``second`` is asked ``after`` so
    many seconds.

    Raises what the last of them raised when both failed. Cancelled, it stops both.
    """
    calls = {asyncio.create_task(first.begin(seconds)): first}
    try:
        await asyncio.wait(calls, timeout=after)
        if not any(task.done() for task in calls) and (other := second()) is not None:
            calls[asyncio.create_task(other.begin(seconds))] = other
        failure: WootzError | None = None
        running = set(calls)
        while running:
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                try:
                    task.result()
                except WootzError as error:
                    failure = error
                else:
                    winner = calls.pop(task)
                    winner.stopped = await _stop(calls)
                    return winner
        assert failure is not None
        raise failure
    except BaseException:
        await _stop(calls)
        raise


async def _stop(calls: dict[asyncio.Task[None], Call[Any]]) -> Call[Any] | None:
    """The call that was still waiting, if there was one."""
    stopped = None
    for task, call in calls.items():
        stopped = stopped if task.done() and task.exception() else call
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await call.drop()
    return stopped


async def in_a_task(stream: AsyncGenerator[Item, None]) -> AsyncGenerator[Item, None]:
    """The same stream, advanced by one task from its beginning to its end, whoever reads it: a time-out inside of it
    belongs to the task that set it, and a race begins a stream in another task than it is read in."""
    arrived: asyncio.Queue[Item | BaseException | None] = asyncio.Queue(maxsize=1)

    async def pump() -> None:
        try:
            async for item in stream:
                await arrived.put(item)
        except Exception as error:
            await arrived.put(error)
        else:
            await arrived.put(None)
        finally:
            await stream.aclose()

    pumping = asyncio.create_task(pump())
    try:
        while (item := await arrived.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        pumping.cancel()
        await asyncio.gather(pumping, return_exceptions=True)
