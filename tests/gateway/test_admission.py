"""Places at a model: who waits, who goes first, who is sent away, and that nothing is lost on the way."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import ASK, CHAT, HANG, GatewayServer, ScriptedModel, until

from wootz.core import ConfigError, RateLimitError, load_config
from wootz.core.journey import Journey
from wootz.core.wire import LEAST_URGENT
from wootz.gateway.admission.capacity import FixedCapacity, LearntCapacity
from wootz.gateway.admission.fair import Entry, FairOrder
from wootz.gateway.admission.queue import ModelQueue


def jain(shares: list[float]) -> float:
    """Jain's index: 1 where all are equal, 1/n where one has all."""
    return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))


# --- the order ----------------------------------------------------------------------------------------------------


class Fifo:
    """What a fair order is compared with."""

    def __init__(self) -> None:
        self._line = deque[Entry]()

    def wait(self, entry: Entry) -> None:
        self._line.append(entry)

    def next(self, least_urgent: int) -> Entry | None:
        return self._line.popleft() if self._line else None

    def end(self, entry: Entry, used: float) -> None: ...


def crowd(order: Any, *, places: int = 8, seconds: float = 600.0, heavy_tokens: int = 500) -> Counter[str]:
    """One user with a hundred requests open at any time and fifty with one; all ask again at once, in simulated time.
    Tokens that each was given."""
    rng, given_tokens, free, now = random.Random(5), Counter[str](), places, 0.0
    running: list[tuple[float, int, Entry, int]] = []
    for user in ["heavy"] * 100 + [f"light {n}" for n in range(50)]:
        order.wait(Entry(user, 0, 500.0))
    numbers = itertools.count()
    while now < seconds:
        while free and (entry := order.next(LEAST_URGENT)) is not None:
            tokens = heavy_tokens if entry.user == "heavy" else rng.randint(100, 900)
            heapq.heappush(running, (now + tokens / 100, next(numbers), entry, tokens))
            free -= 1
        now, _, entry, tokens = heapq.heappop(running)
        order.end(entry, float(tokens))
        given_tokens[entry.user] += tokens
        free += 1
        order.wait(Entry(entry.user, 0, 500.0))
    return given_tokens


@pytest.mark.parametrize("heavy_tokens", [500, 5000])
def test_one_heavy_and_fifty_light_users_get_the_same(heavy_tokens: int) -> None:
    shares = [float(tokens) for tokens in crowd(FairOrder(), heavy_tokens=heavy_tokens).values()]
    assert len(shares) == 51
    assert jain(shares) >= 0.95


def test_in_order_of_arrival_the_heavy_one_would_have_most_of_it() -> None:
    shares = crowd(Fifo())
    assert shares["heavy"] > sum(shares.values()) / 2
    assert jain([float(tokens) for tokens in shares.values()]) < 0.1


def test_who_comes_late_does_not_wait_for_another_ones_hundred() -> None:
    order = FairOrder()
    for _ in range(100):
        order.wait(Entry("heavy", 0, 10.0))
    running = [order.next(0) for _ in range(10)]
    order.wait(late := Entry("late", 0, 10.0))
    assert running[0] is not None
    order.end(running[0], 10.0)
    assert order.next(0) is late


def test_weights_are_shares() -> None:
    order, got = FairOrder(), Counter[str]()
    weights = {"one": 1.0, "three": 3.0}
    for user in ("one", "three"):
        order.wait(Entry(user, 0, 100 / weights[user]))
    for _ in range(400):
        entry = order.next(0)
        assert entry is not None
        order.end(entry, 100 / weights[entry.user])
        got[entry.user] += 1
        order.wait(Entry(entry.user, 0, 100 / weights[entry.user]))
    assert got["three"] / got["one"] == pytest.approx(3, rel=0.05)


def test_nobody_saves_up_a_claim_while_idle() -> None:
    order = FairOrder()
    for _ in range(50):
        order.wait(Entry("busy", 0, 1.0))
        entry = order.next(0)
        assert entry is not None
        order.end(entry, 1.0)
    for user in ("busy", "sleeper") * 20:
        order.wait(Entry(user, 0, 1.0))
    first = Counter[str]()
    for _ in range(10):
        entry = order.next(0)
        assert entry is not None
        first[entry.user] += 1
        order.end(entry, 1.0)
    assert abs(first["busy"] - first["sleeper"]) <= 2


def test_when_one_is_too_many_it_is_the_newest_of_who_waits_with_most() -> None:
    order = FairOrder()
    heavy = [Entry("heavy", 0, 1.0) for _ in range(5)]
    for entry in heavy:
        order.wait(entry)
    assert order.last(Entry("light", 0, 1.0)) is heavy[-1]
    one_more = Entry("heavy", 0, 1.0)
    assert order.last(one_more) is one_more
    order.wait(line := Entry("light", LEAST_URGENT, 1.0))
    assert order.last(one_more) is line, "a batch line goes before anybody who waits for an answer"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("wnel"), st.sampled_from("abc"), st.integers(0, 2), st.floats(0.1, 9))))
def test_whatever_happens_the_order_is_whole(steps: list[tuple[str, str, int, float]]) -> None:
    """Nobody is let in while a more urgent one waits; everybody is let in once; nothing is left over."""
    order, waiting, running = FairOrder(), list[Entry](), list[Entry]()
    for what, user, urgency, cost in steps:
        if what == "w":
            waiting.append(Entry(user, urgency, cost))
            order.wait(waiting[-1])
        elif what == "n" and (entry := order.next(2)) is not None:
            assert entry.urgency == min(one.urgency for one in waiting)
            waiting.remove(entry)
            running.append(entry)
        elif what == "e" and running:
            order.end(running.pop(0), cost)
        elif what == "l" and waiting:
            order.leave(waiting.pop(0))
        order.check_integrity()
        assert order.num_waiting == len(waiting)
    while (entry := order.next(2)) is not None:
        waiting.remove(entry)
    assert not waiting


# --- the queue ----------------------------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def queue_of(places: int, **options: Any) -> ModelQueue:
    return ModelQueue("m", FixedCapacity(places), **{"max_waiting": 100, "max_wait_seconds": 60.0, **options})


class Visitor:
    """A request in a task of its own, which stays until it is told to go."""

    def __init__(self, queue: ModelQueue, user: str = "u", urgency: int = 0) -> None:
        self.inside, self.may_go = asyncio.Event(), asyncio.Event()
        self.journey = Journey()
        self.task = asyncio.create_task(self._visit(queue, user, urgency))

    async def _visit(self, queue: ModelQueue, user: str, urgency: int) -> None:
        async with queue.place(user, weight=1.0, urgency=urgency, journey=self.journey):
            self.inside.set()
            await self.may_go.wait()

    async def leave(self) -> None:
        self.may_go.set()
        await self.task


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_batch_lines_wait_for_all_others_and_never_have_all_places() -> None:
    queue = queue_of(4, batch_share=0.5)
    lines = [Visitor(queue, "batch", LEAST_URGENT) for _ in range(4)]
    await settle()
    assert [line.inside.is_set() for line in lines] == [True, True, False, False]
    people = [Visitor(queue, f"p{n}") for n in range(3)]
    await settle()
    assert [one.inside.is_set() for one in people] == [True, True, False]
    await people[0].leave()
    await settle()
    assert people[2].inside.is_set()
    assert not lines[2].inside.is_set()
    for one in (*people[1:], *lines[:2]):
        await one.leave()
    await settle()
    assert lines[3].inside.is_set()
    await asyncio.gather(*(line.leave() for line in lines[2:]))
    assert (queue.running, queue.batch_running, queue.waiting) == (0, 0, 0)


async def test_retry_after_is_the_queue_over_the_rate_at_which_requests_end() -> None:
    clock = Clock()
    queue = queue_of(1, max_waiting=3, clock=clock)
    for _ in range(8):  # One every half second.
        visitor = Visitor(queue)
        await settle()
        clock.now += 0.5
        await visitor.leave()
    visitors = [Visitor(queue, f"u{n}") for n in range(4)]
    await settle()
    with pytest.raises(RateLimitError) as refused:
        async with queue.place("u9", weight=1.0, urgency=0, journey=Journey()):
            pass
    assert refused.value.code == "overloaded"
    assert refused.value.retry_after == pytest.approx(4 * 0.5, rel=0.15)
    assert queue.num_refused == 1
    await asyncio.gather(*(visitor.leave() for visitor in visitors))


async def test_a_full_queue_makes_room_for_a_user_who_waits_with_less() -> None:
    queue = queue_of(1, max_waiting=3)
    heavy = [Visitor(queue, "heavy") for _ in range(4)]
    await settle()
    light = Visitor(queue, "light")
    await settle()
    assert isinstance(heavy[-1].task.exception(), RateLimitError)
    await heavy[0].leave()
    await settle()
    assert light.inside.is_set()
    for visitor in (light, *heavy[1:3]):
        await visitor.leave()


async def test_who_waits_too_long_or_goes_away_leaves_no_trace() -> None:
    queue = queue_of(1, max_wait_seconds=0.01)
    inside, late, gone = Visitor(queue), Visitor(queue, "late"), Visitor(queue, "gone")
    await settle()
    gone.task.cancel()
    with pytest.raises(RateLimitError, match="none became free within"):
        await late.task
    await asyncio.gather(gone.task, return_exceptions=True)
    assert (queue.running, queue.waiting) == (1, 0)
    assert late.journey.spans[0].name == "queue"
    await inside.leave()
    assert queue.running == 0


async def test_who_is_cancelled_in_the_moment_of_being_let_in_gives_the_place_on() -> None:
    queue = queue_of(1)
    inside, unlucky, next_one = Visitor(queue), Visitor(queue, "a"), Visitor(queue, "b")
    await settle()
    inside.may_go.set()
    await asyncio.sleep(0)  # It leaves; the future of the next one is set, whose task has not run yet.
    unlucky.task.cancel()
    await settle()
    assert next_one.inside.is_set()
    await next_one.leave()
    assert (queue.running, queue.waiting) == (0, 0)


def test_a_capacity_is_learnt() -> None:
    """A model that copes with 20 at a time and says 429 to the 21st."""
    learnt, now = LearntCapacity(), 0.0
    seen = []
    for _ in range(400):
        places, now = learnt.places, now + 1
        for number in range(places):
            error = RateLimitError("too much") if number >= 20 else None
            learnt.ended(error, now - 0.5, now, full=True)
        seen.append(learnt.places)
    late = seen[100:]
    assert 12 <= min(late) <= max(late) <= 22
    assert sum(late) / len(late) > 15


# --- over HTTP ----------------------------------------------------------------------------------------------------


@pytest.fixture
def narrow(tmp_path: Path):
    settings = {"admission": {"capacity": {"unused": 1}, "max_waiting": 1}}
    with GatewayServer(tmp_path, lambda: {"unused": ScriptedModel("unused"), "free": ScriptedModel("free")},
                       settings=settings) as server:  # fmt: skip
        yield server


def test_a_full_model_answers_429_with_retry_after_and_others_are_not_touched(narrow: GatewayServer) -> None:
    model = narrow.gateway.models["unused"]
    assert isinstance(model, ScriptedModel)
    model.script = ["a", HANG]
    queue = narrow.gateway.admission.queues["unused"]
    headers = {"authorization": f"Bearer {narrow.key}"}
    with httpx.Client(base_url=narrow.url, headers=headers, timeout=30) as http:
        with http.stream("POST", CHAT, json=ASK | {"model": "unused", "stream": True}) as first:
            assert first.status_code == 200
            waiting = narrow.call(_begin(narrow, headers))
            narrow.call(until(_reached(lambda: queue.waiting == 1)))
            refused = http.post(CHAT, json=ASK | {"model": "unused"}, headers={"x-request-id": "third"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
            assert int(refused.headers["retry-after"]) >= 1
            assert narrow.wait_for_record("third").error_code == "overloaded"
            assert http.post(CHAT, json=ASK | {"model": "free"}).status_code == 200
            state = http.get("/admin/admission", headers={"authorization": f"Bearer {narrow.admin_key}"}).json()
            assert {**state["data"][0], "retry_after": 0} == {
                "model": "unused", "places": 1, "running": 1, "waiting": 1, "waited": 1, "refused": 1, "retry_after": 0,
            }  # fmt: skip
            assert 'wootz_admission_waiting{model="unused"} 1.0' in http.get("/metrics").text
            model.script = ["b"]
        response = narrow.call(_ended(waiting))
        assert response.status_code == 200
    record = narrow.wait_for_record("second")
    assert record.queue_time is not None
    assert (queue.running, queue.waiting) == (0, 0)


async def _begin(narrow: GatewayServer, headers: dict[str, str]) -> asyncio.Task[httpx.Response]:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(base_url=narrow.url, headers=headers | {"x-request-id": "second"}) as http:
            return await http.post(CHAT, json=ASK | {"model": "unused"}, timeout=30)

    return asyncio.create_task(ask())


async def _ended(task: asyncio.Task[httpx.Response]) -> httpx.Response:
    return await task


def _reached(condition: Callable[[], bool]):
    async def check() -> bool:
        return condition()

    return check


def test_a_capacity_of_nothing_is_an_error_of_the_config(tmp_path: Path) -> None:
    (tmp_path / "wootz.toml").write_text("[admission.capacity]\ngone = 4\n")
    with pytest.raises(ConfigError, match='there is no model or route "gone"'):
        load_config({"home": str(tmp_path)}, environ={}, cwd=tmp_path)
