"""Column types that mean the same on SQLite and PostgreSQL: an instant, an exact amount of money, a value of a type."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
from sqlalchemy import JSON, BigInteger, DateTime
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """An instant. Only aware datetimes go in, and they come out in UTC (SQLite itself would forget the zone)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a datetime without a time zone names no instant: {value!r}")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


USD_DECIMALS = 12
"""A price has at most 6 decimals per million tokens, so the cost of whole tokens has at most 12."""

_PICODOLLARS = 10**USD_DECIMALS


class ExactUSD(TypeDecorator[Decimal]):
    """US dollars, exact: a `Decimal` here, a BIGINT of 1e-12 dollars there, so SQL sums are integer sums.

    A row holds up to 9.2 million dollars. A value with more than 12 decimals is refused, never rounded.
    """

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> int | None:
        if value is None:
            return None
        numerator, denominator = value.as_integer_ratio()
        if _PICODOLLARS % denominator:
            raise ValueError(f"{value} USD has more than {USD_DECIMALS} decimals")
        return numerator * (_PICODOLLARS // denominator)

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:
        # PostgreSQL's sum of bigints arrives as a Decimal without a fraction.
        return None if value is None else picodollars(int(value))


def picodollars(amount: int) -> Decimal:
    """``amount`` times 1e-12 dollars, at any size (`Decimal` arithmetic would round at 28 digits)."""
    sign, digits = (1, str(-amount)) if amount < 0 else (0, str(amount))
    return Decimal((sign, tuple(map(int, digits)), -USD_DECIMALS))


class Typed(TypeDecorator[Any]):
    """A value of a type that msgspec knows (dataclasses, tuples, `Decimal`s in them), as JSON; an empty one as NULL.

    ``empty`` makes the value that NULL stands for.
    """

    impl = JSON(none_as_null=True)
    cache_ok = True

    def __init__(self, type: Any, empty: Callable[[], Any]) -> None:
        super().__init__()
        self.type, self.empty = type, empty

    def bind_processor(self, dialect: Dialect) -> Any:
        """JSON's text in one step: SQLAlchemy's own way to it took six times as long."""
        empty = self.empty()
        return lambda value: None if value is None or value == empty else msgspec.json.encode(value).decode()

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        return self.empty() if value is None else msgspec.convert(value, self.type)

    def coerce_compared_value(self, op: Any, value: Any) -> Any:
        """``column["name"]`` looks into the JSON."""
        return self.impl_instance.coerce_compared_value(op, value)
