"""A model with what is known of how it does. All routes that it is in share it, so they learn from each other."""

from __future__ import annotations

from collections.abc import Callable

from wootz.core import LanguageModel, RateLimitError, UpstreamError, WootzError
from wootz.core.journey import Attempt, Journey
from wootz.gateway.routing.backoff import RetryBudget
from wootz.gateway.routing.breaker import Breaker
from wootz.gateway.routing.latency import Latency


class Deployment:
    """``composed``: the model is a route or a cascade, whose own parts write their attempts on the journey."""

    def __init__(
        self, model: LanguageModel, clock: Callable[[], float], *, composed: bool = False, region: str | None = None
    ) -> None:
        self.model = model
        self.region = region
        self.composed = composed
        self.in_flight = 0
        self.breaker = Breaker(clock)
        self.latency = Latency(clock)
        self.retries = RetryBudget()
        self.last_error: str | None = None
        self.held = False
        """Not to be asked while an incident lasts (`gateway/incident_actions.py`), unless nobody else is left."""
        self._clock = clock
        self._rests_until = 0.0
        self._over_limit = False
        """Why it rests: we ask too much, or it has trouble of its own."""
        self.num_rests = 0
        """How often it told this process to come back later."""

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def available_in(self) -> float:
        """Seconds until it may be asked: it said Retry-After, or its breaker is open."""
        return max(self._rests_until - self._clock(), self.breaker.opens_in, 0.0)

    @property
    def available(self) -> bool:
        return not self.resting and not self.held and self.breaker.admits

    @property
    def resting(self) -> bool:
        """It said when to come back (Retry-After), and it is not that late."""
        return self._rests_until > self._clock()

    @property
    def limited(self) -> bool:
        """It rests, as it said that we ask too much."""
        return self.resting and self._over_limit

    def admit(self) -> bool:
        """Whether a request may go there now; see `Breaker.admit`."""
        return not self.resting and self.breaker.admit()

    def begin(self, journey: Journey) -> Attempt:
        self.in_flight += 1
        if self.composed:
            return Attempt(deployment=self.name, provider=self.model.provider, start=journey.now)
        return journey.attempt(self.name, self.model.provider)

    def failed(self, error: WootzError) -> None:
        """A limit is not a failure: the endpoint works, and says when to come back. Nor is a request that is wrong."""
        self.last_error = error.code
        if isinstance(error, RateLimitError):
            self._rest(error.retry_after, over_limit=True)
            self.breaker.left()
        elif error.retryable:
            if isinstance(error, UpstreamError) and error.retry_after:
                self._rest(error.retry_after, over_limit=False)
            self.breaker.failed()
        else:
            self.breaker.succeeded()

    @property
    def rest(self) -> tuple[float, bool]:
        """For how many seconds more it rests, and whether as we ask too much."""
        return max(0.0, self._rests_until - self._clock()), self._over_limit

    def adopt_rest(self, seconds: float, *, over_limit: bool) -> None:
        """It told another process to come back later."""
        self._rests_until, self._over_limit = max(self._rests_until, self._clock() + seconds), over_limit

    def _rest(self, seconds: float, *, over_limit: bool) -> None:
        self.num_rests += 1
        self.adopt_rest(seconds, over_limit=over_limit)
