"""Identifiers are never given twice: not by threads, not by a process and its child."""

from __future__ import annotations

import os
import threading

from wootz.core.wire import new_id


def test_threads_never_get_the_same_id() -> None:
    ids: list[str] = []

    def take() -> None:
        ids.extend(new_id("req") for _ in range(1000))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ids)) == len(ids) == 4000
    assert {len(id) for id in ids} == {len("req-") + 32}


def test_a_child_does_not_give_out_its_parents_ids() -> None:
    new_id("req")
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, new_id("req").encode())
        os._exit(0)
    os.wait()
    assert os.read(read, 100).decode() != new_id("req")
