"""A child process by itself; Python's own `timeit` stands in for an engine, since it runs any statement."""

from __future__ import annotations

import asyncio

import psutil
import pytest

from wootz.app.process import Child


@pytest.fixture
def run():
    """A child that runs a statement."""
    return lambda statement: Child("child", "timeit", ["-n1", "-r1", statement])


async def test_lines_are_kept_back_until_it_has_worked(run):
    said: list[str] = []
    child = run("print('one'); print(); print('two')")
    await child.start(said.append)
    assert await child.wait() == "exit code 0"
    assert said == []
    child.relay(said.append)
    assert said[:2] == ["child | one", "child | two"]


async def test_an_endless_line_does_not_block_it(run):
    child = run("print('x' * 10**6); print('y' * 10**6); import os; print('reason', flush=True); os._exit(3)")
    await child.start(lambda line: None)
    assert await asyncio.wait_for(child.wait(), 30) == "exit code 3"
    assert child.last_line == "reason"


async def test_what_does_not_listen_is_killed_with_what_it_started(run):
    child = run(
        "import signal, subprocess, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    )
    await child.start(lambda line: None)
    while not child.last_line:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    grandchild = psutil.Process(int(child.last_line))
    await child.stop(0.2)
    assert await child.wait() == "SIGKILL"
    gone, _ = psutil.wait_procs([grandchild], timeout=5)
    assert gone or grandchild.status() == psutil.STATUS_ZOMBIE
