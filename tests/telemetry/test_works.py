"""A work beside the answering that fails is told of, counted, and begun again."""

from __future__ import annotations

import asyncio

import pytest

from wootz.telemetry import works
from wootz.telemetry.metrics import Metrics
from wootz.telemetry.works import at_work


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Those that were made; none takes time."""
    made = list[float]()

    async def at_once(seconds: float) -> None:
        made.append(seconds)
        await asyncio.sleep(0)

    monkeypatch.setattr(works, "sleep", at_once)
    return made


async def test_a_work_that_fails_is_begun_again_with_ever_longer_pauses(pauses, caplog):
    metrics, began, stays = Metrics(), list[int](), asyncio.Event()

    async def fails() -> None:
        began.append(len(began))
        if len(began) <= 9:
            raise ValueError(f"it was time {len(began)}")
        stays.set()
        await asyncio.Event().wait()

    async with asyncio.timeout(30), at_work(metrics, {"counting": fails}):
        await stays.wait()
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert metrics.registry.get_sample_value("wootz_work_failures_total", {"work": "counting"}) == 9
    assert "counting failed" in caplog.text
    assert "ValueError: it was time 9" in caplog.text
    assert "in fails" in caplog.text


async def test_others_go_on_and_all_have_ended_when_the_block_has(pauses):
    ended, failed = list[str](), asyncio.Semaphore(0)

    async def fails() -> None:
        failed.release()
        raise OSError

    async def goes_on() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("goes on")

    async def is_done() -> None:
        ended.append("done")

    async with asyncio.timeout(30), at_work(Metrics(), {"one": fails, "two": goes_on, "three": is_done}):
        for _ in range(5):
            await failed.acquire()
        assert ended == ["done"]
    assert ended == ["done", "goes on"]


async def test_who_waited_for_one_that_was_cancelled_is_not_cancelled(pauses):
    began = asyncio.Semaphore(0)

    async def waits() -> None:
        began.release()
        other = asyncio.create_task(asyncio.Event().wait())
        other.cancel()
        await other

    async with asyncio.timeout(30), at_work(Metrics(), {"waiting": waits}):
        for _ in range(2):
            await began.acquire()
