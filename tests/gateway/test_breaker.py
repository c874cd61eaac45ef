"""The circuit breaker against a model of what it promises, over random histories."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from wootz.gateway.routing.breaker import FAILURES, FIRST_PAUSE, LONGEST_PAUSE, WINDOW, Breaker


class BreakerMachine(RuleBasedStateMachine):
    """The promise, in other words than the code's: outcomes are kept by hand, and the state is told from them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.breaker = Breaker(lambda: self.now)
        self.state, self.pause, self.until = "closed", 0.0, 0.0
        self.outcomes: list[bool] = []
        self.under_way = 0
        self.probe = False

    def _expected(self) -> str:
        return "half-open" if self.state == "open" and self.now >= self.until else self.state

    @rule(seconds=st.sampled_from([0.0, 0.1, FIRST_PAUSE, 3 * FIRST_PAUSE, LONGEST_PAUSE]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def a_request_comes(self) -> None:
        may = self._expected() == "closed" or (self._expected() == "half-open" and not self.probe)
        assert self.breaker.admit() == may
        if may:
            self.under_way += 1
            self.probe = self._expected() == "half-open"

    @precondition(lambda self: self.under_way)
    @rule(good=st.booleans())
    def a_request_ends(self, good: bool) -> None:
        self.under_way -= 1
        (self.breaker.succeeded if good else self.breaker.failed)()
        if good:
            if self.probe:
                self.state, self.pause, self.probe, self.outcomes = "closed", 0.0, False, []
            self.outcomes = [*self.outcomes, True][-WINDOW:]
            return
        self.outcomes = [*self.outcomes, False][-WINDOW:]
        bad = self.outcomes.count(False)
        if self.probe:
            self._opens(min(2 * self.pause, LONGEST_PAUSE))
        elif self.state == "closed" and bad >= FAILURES and bad >= len(self.outcomes) / 2:
            self._opens(FIRST_PAUSE)

    @precondition(lambda self: self.under_way)
    @rule()
    def a_client_leaves(self) -> None:
        self.under_way -= 1
        self.breaker.left()
        self.probe = False

    def _opens(self, pause: float) -> None:
        self.state, self.pause, self.until, self.probe = "open", pause, self.now + pause, False

    @invariant()
    def it_is_as_promised(self) -> None:
        assert self.breaker.state == self._expected()
        assert FIRST_PAUSE <= self.pause <= LONGEST_PAUSE or self.state == "closed"

    @invariant()
    def it_never_stays_shut(self) -> None:
        """Whatever happened, after its pause it lets a request pass unless one is on probation already."""
        if self.state == "open" and not self.probe:
            later = self.now + self.breaker.opens_in
            now, self.now = self.now, later
            assert self.breaker.admits
            self.now = now


TestBreaker = BreakerMachine.TestCase
TestBreaker.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
