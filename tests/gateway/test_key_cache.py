"""What a token is good for: kept for a second, and read again before that is over while it is in use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from wootz.core import UnavailableError
from wootz.gateway import key_cache
from wootz.gateway.key_cache import KeyCache


class Rows:
    """What the database says, and what it was asked."""

    def __init__(self) -> None:
        self.known = {"a": 1, "b": 2}
        self.asked: list[list[str]] = []
        self.is_away = False
        self.now = 0.0
        self.meanwhile: Callable[[], object] = lambda: None

    async def find(self, digests: Sequence[str]) -> dict[str, int]:
        self.asked.append(sorted(digests))
        found = {digest: self.known[digest] for digest in digests if digest in self.known}
        self.meanwhile()
        if self.is_away:
            raise UnavailableError("it is away")
        return found


@pytest.fixture
def rows() -> Rows:
    return Rows()


@pytest.fixture
def cache(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> KeyCache[int]:
    """Its reading ahead takes a turn whenever we sleep."""
    monkeypatch.setattr(key_cache, "AHEAD_SECONDS", 0.0)
    return KeyCache(rows.find, clock=lambda: rows.now)


async def read_ahead(cache: KeyCache[int], turns: int = 5) -> None:
    reading = asyncio.create_task(cache.read_ahead())
    for _ in range(turns):
        await asyncio.sleep(0)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)


async def test_nobody_waits_for_what_is_in_use(rows: Rows, cache: KeyCache[int]) -> None:
    assert [await cache.get(digest) for digest in "abc"] == [1, 2, None]
    rows.now, rows.known, rows.asked = 0.9, {"a": 10, "b": 2}, []
    await read_ahead(cache)
    assert rows.asked
    assert {tuple(asked) for asked in rows.asked} == {("a", "b")}, "all of them at once, and no stranger"
    rows.now, rows.asked = 1.8, []
    assert await cache.get("a") == 10
    assert not rows.asked


async def test_what_is_gone_is_refused(rows: Rows, cache: KeyCache[int]) -> None:
    await cache.get("a")
    rows.known = {}
    await read_ahead(cache)
    assert await cache.get("a") is None


async def test_what_is_not_used_is_not_read(rows: Rows, cache: KeyCache[int]) -> None:
    await cache.get("a")
    rows.now, rows.asked = key_cache.IN_USE_SECONDS + 1, []
    await read_ahead(cache)
    assert not rows.asked


async def test_of_many_those_used_last_are_read(
    rows: Rows, cache: KeyCache[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_cache, "MOST_AHEAD", 1)
    for digest in "aba":
        rows.now += 0.1
        await cache.get(digest)
    rows.asked = []
    await read_ahead(cache)
    assert {tuple(asked) for asked in rows.asked} == {("a",)}


async def test_what_was_read_before_a_change_is_not_kept(rows: Rows, cache: KeyCache[int]) -> None:
    await cache.get("a")

    def change() -> None:
        rows.known = {"a": 100}
        cache.clear()

    rows.meanwhile = change
    await read_ahead(cache, turns=2)
    rows.meanwhile = lambda: None
    assert await cache.get("a") == 100


async def test_a_database_that_is_away_is_told_to_who_comes_next(rows: Rows, cache: KeyCache[int]) -> None:
    await cache.get("a")
    rows.is_away = True
    await read_ahead(cache)
    assert await cache.get("a") == 1, "what was read within the second still holds"
    rows.now = 1.1
    with pytest.raises(UnavailableError):
        await cache.get("a")
