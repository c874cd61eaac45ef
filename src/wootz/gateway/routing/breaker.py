"""A circuit breaker: what keeps failing is left alone for a while, then tried with one request.

- **closed**: all pass. At least `FAILURES` failures, making up half of the last `WINDOW` outcomes, open it.
- **open**: none pass, until the pause is over.
- **half-open**: one request passes, the probe. It closes the breaker, or opens it for twice as long as before. A probe
  that says nothing (its client went away) gives its place to the next.

Source: M. Nygard, *Release It!*. The clock is monotonic, so setting the machine's time changes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Literal

State = Literal["closed", "open", "half-open"]

WINDOW = 20
FAILURES = 5
FIRST_PAUSE = 10.0
LONGEST_PAUSE = 300.0


class Breaker:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._outcomes: deque[bool] = deque(maxlen=WINDOW)
        self._opened = 0.0
        self._pause = 0.0
        """0 while it is closed."""
        self._probing = False
        self.num_turns = 0
        """How often it opened or closed by what was seen here."""

    @property
    def state(self) -> State:
        if not self._pause:
            return "closed"
        return "open" if self.opens_in > 0 else "half-open"

    @property
    def opens_in(self) -> float:
        """Seconds until it lets a request pass; 0 if it does now, or as soon as its probe is back."""
        return max(0.0, self._opened + self._pause - self._clock()) if self._pause else 0.0

    @property
    def admits(self) -> bool:
        return self.state == "closed" or (self.state == "half-open" and not self._probing)

    def admit(self) -> bool:
        """Whether this request may pass. Who may must tell how it went: `succeeded`, `failed` or `left`."""
        if not self.admits:
            return False
        self._probing = self.state == "half-open"
        return True

    def succeeded(self) -> None:
        if self._probing:
            self._close()
        self._outcomes.append(True)

    def failed(self) -> None:
        self._outcomes.append(False)
        failures = self._outcomes.count(False)
        if self._probing:
            self._open(min(2 * self._pause, LONGEST_PAUSE))
        elif not self._pause and failures >= FAILURES and 2 * failures >= len(self._outcomes):
            self._open(FIRST_PAUSE)

    def left(self) -> None:
        """It ended without saying anything of the endpoint."""
        self._probing = False

    @property
    def pause(self) -> float:
        """How long it stays open each time, in seconds; 0 while it is closed."""
        return self._pause

    def adopt(self, pause: float, opens_in: float) -> None:
        """What another process's breaker of the same deployment has become."""
        self._pause, self._opened = pause, self._clock() + opens_in - pause
        self._probing = False
        if not pause:
            self._outcomes.clear()

    def _open(self, pause: float) -> None:
        self.num_turns += 1
        self._opened, self._pause, self._probing = self._clock(), pause, False

    def _close(self) -> None:
        self.num_turns += 1
        self._pause, self._probing = 0.0, False
        self._outcomes.clear()
