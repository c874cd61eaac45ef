"""`rehearse`: the whole life of a rotated key on a scratch store, with the master key that the real one has.

For the quarter in which nothing leaked: whether the master key still opens what it locked, whether the steps of
``docs/secrets.md`` do what they say, and whether the person who runs them has done so once, is known before the night
in which it matters. Nothing of the real store is touched; days pass by a clock of its own.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from wootz.core import Config, ConfigError
from wootz.store.secrets.envelope import KEY_BYTES, MasterKey
from wootz.store.secrets.local import DAY, LocalStore
from wootz.store.secrets.opening import wrapper_of

NAME, SERVER = "drill", "a-server-of-the-drill"


def rehearse(config: Config) -> Iterator[str]:
    """Each step in words, after it went as it should. Raises `ConfigError` at the first that did not."""
    own = config.secrets.master_key is not None or (config.home / "secrets.key").exists()
    wrapper = wrapper_of(config) if own else lambda: MasterKey(os.urandom(KEY_BYTES))
    key = wrapper()
    now = time.time()
    old, new = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    with tempfile.TemporaryDirectory(prefix="wootz-drill-") as folder:
        store = LocalStore(Path(folder) / "drill.db", lambda: key, clock=lambda: now)

        store.set(NAME, old)
        _must(store.current(NAME).value == old, "the master key does not open what it locked")
        yield f"kept and opened with {'the master key of this setup' if own else 'a master key made for the drill'}"

        now += 91 * DAY
        _must([about.name for about in store.stale()] == [NAME], "an old key is not called stale")
        yield "after a quarter it is stale: `wootz secrets list --stale` exits 1"

        store.count_uses(NAME, {1: 1}, SERVER)
        store.rotate(NAME, new)
        _must(store.current(NAME).value == new, "readers do not get the new key")
        _must(store.get(NAME, 1).value == old, "the old key does not stay valid")
        yield "rotated: readers get version 2, version 1 stays valid for who has it"

        store.promote(NAME, 1)
        _must(store.current(NAME).value == old, "a rotation can't be undone")
        store.promote(NAME, 2)
        yield "undone and done again: `rotate --to 1`, `rotate --to 2`"

        _must(_refused(lambda: store.retire(NAME, 1)), "a version in use was retired")
        yield "version 1 is not retired while a server used it within the hour"

        now += 2 * 3600
        store.retire(NAME, 1)
        _must(_refused(lambda: store.get(NAME, 1)), "a retired version still opens")
        yield "quiet for an hour, it is retired; asking for it is InvalidSecretVersion"

        store.recover(NAME, 1)
        _must(store.get(NAME, 1).value == old, "a retired version can't be had back")
        now += 3600  # Until no server can still be sending it.
        store.retire(NAME, 1)
        yield "had back within the recovery window, and retired again"

        now += 8 * DAY
        _must(store.destroy_overdue() == [(NAME, 1)], "nothing is destroyed after the recovery window")
        _must(all(value != old for _, value in store.readable_values()), "a destroyed value is still there")
        yield "after the recovery window its value and its data key are gone"


def _must(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ConfigError(f"the drill failed: {otherwise}")


def _refused(action: Callable[[], object]) -> bool:
    try:
        action()
    except ConfigError:
        return True
    return False
