"""Who is looking at a page, and the brake on those who try out keys."""

from __future__ import annotations

import time
from dataclasses import dataclass

from wootz.core import RateLimitError
from wootz.gateway import Key
from wootz.gateway.identity.roles import Permission

COOKIE = "wootz_session"


@dataclass(frozen=True)
class Visitor:
    """Without accounts there is no key, and everything but keys may be seen."""

    key: Key | None
    csrf_token: str = ""

    @property
    def is_admin(self) -> bool:
        return self.key is None or self.key.is_admin

    def may(self, permission: Permission) -> bool:
        return self.key is None or self.key.may(permission)

    @property
    def sees_all(self) -> bool:
        return self.may("requests") and self.may("all_teams")

    @property
    def confined_to(self) -> str | None:
        """The id of the one key whose requests may be seen; None means those of more (see `team`)."""
        sees_team = self.key is not None and self.key.may("requests") and self.key.team is not None
        return None if self.key is None or self.sees_all or sees_team else self.key.id

    @property
    def pays_for(self) -> str | None:
        """The id of the one key whose spending may be seen; None means everybody's."""
        return None if self.key is None or self.may("costs") else self.key.id

    @property
    def team(self) -> str | None:
        """The id of the one team whose requests may be seen; None where another bound holds, or none."""
        return None if self.sees_all or self.confined_to or not (self.key and self.key.team) else self.key.team.id


class Throttle:
    """At most ``limit`` failures per address and window; then nothing is tried until the window has passed."""

    def __init__(self, limit: int = 10, window: float = 300.0) -> None:
        self.limit, self.window = limit, window
        self._failures: dict[str, list[float]] = {}

    def check(self, address: str) -> None:
        """Raises `RateLimitError` for an address that has failed too often."""
        failures = self._recent(address)
        if len(failures) >= self.limit:
            wait = failures[0] + self.window - time.monotonic()
            raise RateLimitError("too many failed sign-ins; try again in a few minutes", retry_after=wait)

    def failed(self, address: str) -> None:
        for other in list(self._failures):
            if not self._recent(other):
                del self._failures[other]
        self._failures[address] = [*self._recent(address), time.monotonic()]

    def _recent(self, address: str) -> list[float]:
        since = time.monotonic() - self.window
        return [at for at in self._failures.get(address, []) if at > since]
