"""A key that is read again while it is used, so that it rotates without a restart and without a refused request.

Requests never wait for the store: while they come, it is asked beside them every `REFRESH_SECONDS`; only the first
after a pause, whose copy may be long out of date, waits. A store that is down keeps nobody from working with what was
read last. The uses of each version are counted and written down on the same occasions: a version can be retired when
they have ended.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable

from wootz.core import WootzError
from wootz.core.secrets import Secret

REFRESH_SECONDS = 2.0
KEPT_VALUES = 8
"""Of the values it had, those that errors are still cleaned of: answers to an older one may be under way."""

logger = logging.getLogger("wootz.secrets")


class LiveKey:
    """``read`` has the current value, or raises `WootzError`; ``write_down`` takes uses per version. Both block."""

    def __init__(self, read: Callable[[], Secret], write_down: Callable[[dict[int, int]], None] | None = None) -> None:
        self._read, self._write_down = read, write_down
        self._secret = read()
        self._had = [self._secret.value]
        self._uses: Counter[int] = Counter()
        self._read_at = time.monotonic()
        self._refreshing: asyncio.Future[None] | None = None

    @classmethod
    def of(cls, value: str) -> LiveKey:
        """One that never changes."""
        return cls(lambda: Secret(value))

    def __repr__(self) -> str:
        return "LiveKey(…)"

    @property
    def value(self) -> str:
        """As it was read last."""
        return self._secret.value

    async def use(self) -> Secret:
        """The value to send now; it counts as used."""
        if self._refreshing is None:
            if time.monotonic() - self._read_at > 2 * REFRESH_SECONDS:
                await self._begin(0)
            else:
                self._begin(REFRESH_SECONDS)
        elif time.monotonic() - self._read_at > 2 * REFRESH_SECONDS:
            await asyncio.wait([self._refreshing], timeout=REFRESH_SECONDS)
        secret = self._secret
        if secret.version is not None:
            self._uses[secret.version] += 1
        return secret

    def conceal(self, text: str) -> str:
        """The text without this key, nor those that it had before."""
        for value in self._had:
            text = text.replace(value, "***")
        return text

    async def close(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
        await asyncio.to_thread(self._count)

    def _begin(self, after: float) -> asyncio.Future[None]:
        self._refreshing = asyncio.ensure_future(self._refresh(after))
        return self._refreshing

    async def _refresh(self, after: float) -> None:
        try:
            await asyncio.sleep(after)
            secret = await asyncio.to_thread(self._exchange)
            if secret.value not in self._had:
                self._had = [*self._had, secret.value][-KEPT_VALUES:]
            self._secret = secret
        except WootzError as error:
            logger.warning("goes on with the key that was read last: %s", error)
        finally:
            self._read_at, self._refreshing = time.monotonic(), None

    def _exchange(self) -> Secret:
        secret = self._read()
        self._count()
        return secret

    def _count(self) -> None:
        uses, self._uses = self._uses, Counter()
        if not uses or self._write_down is None:
            return
        try:
            self._write_down(dict(uses))
        except WootzError as error:
            self._uses.update(uses)
            logger.warning("could not write down which version was used: %s", error)
