"""Where answers are kept: in this process, bounded in bytes, the least recently used going first."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

ENTRY_OVERHEAD_BYTES = 400
"""Of the dictionary, the key and the objects around an answer's text; about what CPython takes."""


@dataclass(frozen=True, slots=True)
class Found:
    body: bytes
    age: float
    """Seconds since it was kept."""


@dataclass(frozen=True, slots=True)
class Size:
    entries: int
    bytes: int


class Store(Protocol):
    async def get(self, key: bytes) -> Found | None: ...

    async def get_many(self, keys: Sequence[bytes]) -> list[Found | None]: ...

    async def put(self, key: bytes, body: bytes, ttl: float, *, model: str, tenant: str, user: str = "") -> None: ...

    async def purge(self, *, model: str | None = None, tenant: str | None = None, user: str | None = None) -> int:
        """Forget the entries that are of all that is given, everything when nothing is; how many there were."""
        ...

    async def size(self) -> Size: ...

    async def close(self) -> None: ...


@dataclass(slots=True)
class _Kept:
    body: bytes
    kept_at: float
    expires_at: float
    model: str
    tenant: str
    user: str

    def is_of(self, model: str | None, tenant: str | None, user: str | None) -> bool:
        return model in (None, self.model) and tenant in (None, self.tenant) and user in (None, self.user)

    @property
    def num_bytes(self) -> int:
        return len(self.body) + ENTRY_OVERHEAD_BYTES


class MemoryStore:
    """Times are of a monotonic clock: setting the machine's clock makes nothing older or younger."""

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_bytes = max_bytes
        self._clock = clock
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        self._num_bytes = 0

    async def get(self, key: bytes) -> Found | None:
        kept = self._kept.get(key)
        if kept is None:
            return None
        now = self._clock()
        if now >= kept.expires_at:
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        return Found(kept.body, now - kept.kept_at)

    async def get_many(self, keys: Sequence[bytes]) -> list[Found | None]:
        return [await self.get(key) for key in keys]

    async def put(self, key: bytes, body: bytes, ttl: float, *, model: str, tenant: str, user: str = "") -> None:
        if key in self._kept:
            self._drop(key)
        now = self._clock()
        kept = self._kept[key] = _Kept(body, now, now + ttl, model, tenant, user)
        self._num_bytes += kept.num_bytes
        while self._num_bytes > self.max_bytes:
            self._drop(next(iter(self._kept)))

    async def purge(self, *, model: str | None = None, tenant: str | None = None, user: str | None = None) -> int:
        doomed = [key for key, kept in self._kept.items() if kept.is_of(model, tenant, user)]
        for key in doomed:
            self._drop(key)
        return len(doomed)

    async def size(self) -> Size:
        return Size(len(self._kept), self._num_bytes)

    async def close(self) -> None:
        pass

    def check_integrity(self) -> None:
        """For tests: the count of bytes is that of what is there, and within its bound."""
        assert self._num_bytes == sum(kept.num_bytes for kept in self._kept.values()) <= self.max_bytes

    def _drop(self, key: bytes) -> None:
        self._num_bytes -= self._kept.pop(key).num_bytes
