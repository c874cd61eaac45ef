"""When a day, a week or a month begins for whom it is counted: at an hour of the wall clock in a time zone.

Boundaries are instants, so a day with a change of clocks has 23 or 25 hours. An hour that a zone leaves out begins
with the first moment after the gap; one that comes twice begins with its first time (PEP 495, fold=0).
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from wootz.gateway.limits.rules import BudgetPeriod

NEVER = (0, 0)
"""The period of what is never reset: it has no end."""


def period_at(now: float, period: BudgetPeriod, time_zone: str, reset_hour: int) -> tuple[int, int]:
    """Beginning and end in Unix seconds, ``begin <= now < end``."""
    if period == "never":
        return NEVER
    zone = ZoneInfo(time_zone)
    day = _first_day(datetime.fromtimestamp(now, zone).date(), period)
    if _instant(day, zone, reset_hour) > now:
        day = _first_day(day - timedelta(days=1), period)
    return _instant(day, zone, reset_hour), _instant(_next(day, period), zone, reset_hour)


def _instant(day: date, zone: ZoneInfo, hour: int) -> int:
    return int(datetime(day.year, day.month, day.day, hour, tzinfo=zone).astimezone(UTC).timestamp())


def _first_day(day: date, period: BudgetPeriod) -> date:
    if period == "weekly":
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if period == "monthly" else day


def _next(day: date, period: BudgetPeriod) -> date:
    if period == "monthly":
        return (day + timedelta(days=31)).replace(day=1)
    return day + timedelta(days=7 if period == "weekly" else 1)
