"""At most so many requests in any 60 seconds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wootz.core import RateLimitError
from wootz.gateway.limits import WINDOW_SECONDS, RequestLimiter


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_limit_holds_and_says_when_to_come_back() -> None:
    clock = Clock()
    limiter = RequestLimiter(clock)
    limiter.take("a", 2)
    clock.now = 20
    limiter.take("a", 2)
    clock.now = 50
    with pytest.raises(RateLimitError) as refusal:
        limiter.take("a", 2)
    assert refusal.value.retry_after == 10
    limiter.take("b", 2)
    clock.now = 60
    limiter.take("a", 2)


def test_after_the_limit_was_lowered_enough_must_leave_first() -> None:
    clock = Clock()
    limiter = RequestLimiter(clock)
    for clock.now in (0, 10, 20):
        limiter.take("a", 3)
    with pytest.raises(RateLimitError) as refusal:
        limiter.take("a", 1)
    assert refusal.value.retry_after == 60


@given(
    limit=st.integers(1, 5),
    gaps=st.lists(st.one_of(st.integers(0, 5), st.integers(0, 70)), max_size=60),
)
def test_no_window_holds_more_and_waiting_as_told_is_enough(limit: int, gaps: list[int]) -> None:
    clock = Clock()
    limiter = RequestLimiter(clock)
    taken: list[float] = []
    for gap in gaps:
        clock.now += gap
        try:
            limiter.take("a", limit)
        except RateLimitError as refusal:
            clock.now += refusal.retry_after
            limiter.take("a", limit)
        taken.append(clock.now)
    for start in taken:
        assert sum(start <= time < start + WINDOW_SECONDS for time in taken) <= limit
