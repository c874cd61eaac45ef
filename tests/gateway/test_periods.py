"""Days, weeks and months of budgets, in every time zone and through changes of clocks."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wootz.gateway.limits.periods import period_at

ZONES = sorted(available_timezones())


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def shown(now: float, period: str, zone: str = "UTC", hour: int = 0) -> list[str]:
    return [f"{datetime.fromtimestamp(t, UTC):%Y-%m-%d %H:%M}" for t in period_at(now, period, zone, hour)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("now", "period", "zone", "hour", "begin", "end"),
    [
        ("2026-03-14 12:00", "daily", "UTC", 0, "2026-03-14 00:00", "2026-03-15 00:00"),
        ("2026-03-14 05:59", "daily", "UTC", 6, "2026-03-13 06:00", "2026-03-14 06:00"),
        ("2026-03-14 12:00", "daily", "Asia/Shanghai", 0, "2026-03-13 16:00", "2026-03-14 16:00"),
        ("2026-03-15 12:00", "weekly", "UTC", 0, "2026-03-09 00:00", "2026-03-16 00:00"),
        ("2026-03-09 03:00", "weekly", "UTC", 4, "2026-03-02 04:00", "2026-03-09 04:00"),
        ("2026-12-31 23:59", "monthly", "UTC", 0, "2026-12-01 00:00", "2027-01-01 00:00"),
        ("2026-03-01 01:00", "monthly", "UTC", 2, "2026-02-01 02:00", "2026-03-01 02:00"),
        # New York's clocks went from 02:00 to 03:00 on March 8: the day that begins at 02:00 begins at 03:00.
        ("2026-03-08 12:00", "daily", "America/New_York", 2, "2026-03-08 07:00", "2026-03-09 06:00"),
        # On November 1 it was 01:30 twice: the day begins with the first 01:00 and has 25 hours.
        ("2026-11-01 01:30", "daily", "America/New_York", 1, "2026-11-01 05:00", "2026-11-02 06:00"),
    ],
)
def test_when_a_period_begins_and_ends(now: str, period: str, zone: str, hour: int, begin: str, end: str) -> None:
    assert shown(at(now, zone), period, zone, hour) == [begin, end]


def test_what_is_never_reset_has_no_end() -> None:
    assert period_at(at("2026-03-14 12:00"), "never", "UTC", 0) == (0, 0)


@given(
    now=st.integers(0, 4_000_000_000),
    period=st.sampled_from(["daily", "weekly", "monthly"]),
    zone=st.sampled_from(ZONES),
    hour=st.integers(0, 23),
)
def test_periods_follow_each_other_without_gap_or_overlap(now: int, period: str, zone: str, hour: int) -> None:
    begin, end = period_at(now, period, zone, hour)  # type: ignore[arg-type]
    assert begin <= now < end
    assert period_at(begin, period, zone, hour) == period_at(end - 1, period, zone, hour) == (begin, end)  # type: ignore[arg-type]
    assert period_at(end, period, zone, hour)[0] == end  # type: ignore[arg-type]
