"""Two replicas that behave as one while keys rotate, one is killed, one is reloaded. By hand as long as you like."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from two_replicas import Clients, kill, platform, rotate

from wootz.app.pid_file import ask_to_reload

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_providers_key_rotates_under_load_and_nobody_notices() -> None:
    with platform() as made:
        said = asyncio.run(rotate(made, seconds=20, rate=20))
    assert said["failed"] == 0, said
    assert said["refused by the provider"] == 0
    assert said["records that name another version than was sent"] == 0
    assert said["rotations"] >= 5
    assert said["versions used"] >= 5
    assert said["versions whose retirement was refused"] >= said["rotations"] - 1
    assert said["retired"] >= 2


def test_a_killed_replica_loses_no_record_and_no_count_and_no_line_of_a_batch() -> None:
    with platform() as made:
        said = asyncio.run(kill(made, seconds=20))
    assert said["other failures"] == []
    assert said["failures before the kills"] == 0
    assert said["answers without their record"] == []
    assert said["asked of the provider without a record"] == []
    assert said["fairness (Jain)"] >= 0.95, said
    assert said["counters that differ from the ledger"] == {}
    assert said["counters compared"] == 12
    assert (said["lines in the output"], said["lines charged"], said["lines twice in the output"]) == (80, 80, 0)
    assert said["batch"]["completed"] == 80
    assert said["batch lines done while it was crowded"] <= 8


def test_a_reload_under_load_fails_no_request() -> None:
    """One replica, so that nobody else could answer; clients that keep their connections, and streams under way."""

    async def reload(made) -> list:
        made.provider.seconds = lambda text: 0.3
        replica = made.replicas[0]
        async with Clients(made).open() as clients:
            await clients.add_user("ann")
            until = time.monotonic() + 14
            load = asyncio.create_task(clients.closed_loop("ann", until, at_once=6))
            pids = replica.http_pids()
            for _ in range(2):
                await asyncio.sleep(2)
                await asyncio.to_thread(ask_to_reload, made.home, replica.port, seconds=60)
                pids += replica.http_pids()
            await load
            await asyncio.to_thread(_wait_for, lambda: len(replica.http_pids()) == 1)
            assert len(set(pids)) == 3
            return clients.answers

    with platform(1) as made:
        answers = asyncio.run(reload(made))
        (made.home / "wootz.toml").write_text("nonsense = 1")
        with pytest.raises(Exception, match="it goes on as before: nonsense: unknown key"):
            ask_to_reload(made.home, made.replicas[0].port, seconds=60)
    assert len(answers) > 20
    assert [vars(one) for one in answers if not one.whole] == []


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
