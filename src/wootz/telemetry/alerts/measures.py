"""What rules measure: sums, shares, means and quantiles of a stretch of time, by whatever a rule is told apart by.

Each is one aggregate query over the ledger or the signals, the same on SQLite and PostgreSQL, and bounded by their
indexes on time. A query gives for each subject what every comparison needs: the sum, its squares, and how many.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from sqlalchemy import BigInteger as Integer64
from sqlalchemy import (
    Case,
    ColumnElement,
    Double,
    Integer,
    Select,
    case,
    cast,
    extract,
    func,
    literal,
    select,
    type_coerce,
)
from sqlalchemy.ext.asyncio import AsyncSession

from wootz.core import ConfigError
from wootz.telemetry.alerts.rules import Rule
from wootz.telemetry.ledger import requests
from wootz.telemetry.report import grouping
from wootz.telemetry.signals import KINDS, signals

c = requests.c
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Kind = Literal["sum", "share", "mean", "max", "min"]


@dataclass(frozen=True, slots=True)
class Stat:
    """``total`` over ``count``: of a share, how many of how many; of a mean, its sum and that of its squares."""

    kind: Kind
    total: float
    count: int
    squares: float = 0.0

    @property
    def value(self) -> float:
        return self.total / self.count if self.kind in ("share", "mean") and self.count else self.total

    def __add__(self, other: Stat) -> Stat:
        """Of both stretches together; not for ``max`` and ``min``."""
        return Stat(self.kind, self.total + other.total, self.count + other.count, self.squares + other.squares)

    @property
    def variance(self) -> float:
        """Of one sample."""
        if not self.count:
            return 0.0
        mean = self.total / self.count
        return mean * (1 - mean) if self.kind == "share" else max(0.0, self.squares / self.count - mean * mean)


@dataclass(frozen=True)
class Measure:
    """``of`` is summed, over ``over`` where it is a share or a mean; ``where`` leaves out what has no say."""

    kind: Kind
    of: ColumnElement[Any]
    over: ColumnElement[Any] | None = None
    where: ColumnElement[bool] | None = None


def _is(condition: ColumnElement[bool]) -> Case[int]:
    return case((condition, 1), else_=0)


_usd: ColumnElement[Any] = cast(type_coerce(c.cost, Integer64), Double) / 1e12
"""A float: a threshold is compared, nothing is booked."""
_known = c.provider.is_not(None)

MEASURES: Mapping[str, Measure] = {
    "requests": Measure("sum", literal(1)),
    "cost": Measure("sum", _usd),
    "cost_per_request": Measure("mean", _usd),
    "error_share": Measure("share", _is(c.status >= 500), where=_known & (c.status != 499)),
    "repeated_share": Measure("share", _is(c.num_attempts > 1), where=_known & (c.num_attempts > 0)),
    "refusal_share": Measure("share", _is(c.refused.is_(True)), where=_known & (c.status < 400)),
    "unpriced_share": Measure("share", _is(c.priced.is_(False)), where=_known & (c.completion_tokens > 0)),
    "cached_token_share": Measure("mean", c.cached_tokens, c.prompt_tokens, where=c.prompt_tokens > 0),
    "cache_hit_share": Measure(
        "share",
        _is(c.cache.in_(("exact", "semantic", "shared"))),
        where=c.cache.in_(("exact", "semantic", "shared", "miss")),
    ),
}
COLUMNS: Mapping[str, ColumnElement[Any]] = {
    "duration": c.duration,
    "first_token": c.time_to_first_token,
    "between_tokens": c.inter_token_latency,
    "queue": c.queue_time,
    "cost_of_one": _usd,
}
"""What quantiles are taken of."""

FAILURES = (
    *("upstream_error", "upstream_cut_off", "upstream_malformed", "upstream_content_type", "upstream_unknown_host"),
    *("upstream_unreachable", "upstream_tls", "upstream_timeout", "first_token_timeout", "total_timeout"),
    *("incomplete_answer", "engine_restarted", "model_unavailable", "internal_error"),
)
"""Error codes that are the far end's fault. A wrong request, a limit or a client that left are not."""
ATTEMPTS: Mapping[str, tuple[str, ...]] = {
    "attempt_failures": FAILURES,
    "attempt_refusals": ("upstream_refused",),
    "attempt_rate_limits": ("upstream_rate_limit",),
}
SIGNALS: Mapping[str, Kind] = {
    **dict.fromkeys(("injection_attempt", "guardrail_trip", "rows_lost", "engine_died", "out_of_memory"), "sum"),
    **dict.fromkeys(("quality", "faithfulness", "resolved", "queue_depth"), "mean"),
    **dict.fromkeys(("breaker_open", "stale_secret"), "max"),
    "retires_in_days": "min",
}
assert SIGNALS.keys() == KINDS.keys()
GRADER = "\x1f"
"""Between a model and who graded it, in the names of what `is_graded`."""


def check(rule: Rule) -> None:
    """Raises `ConfigError` for what nobody measures."""
    kind = rule.measure.removeprefix("signal:")
    known = kind in SIGNALS if rule.measure.startswith("signal:") else rule.measure in {
        *MEASURES, *COLUMNS, *ATTEMPTS, "cost_per_resolved",
    }  # fmt: skip
    if not known or (rule.measure in COLUMNS) != (rule.quantile is not None):
        of = " without a quantile" if rule.measure in COLUMNS else ""
        raise ConfigError(f'rule {rule.name}: there is no measure "{rule.measure}"{of}')
    if rule.measure.startswith("signal:"):
        if rule.by not in SIGNAL_GROUPS:
            raise ConfigError(f"rule {rule.name}: signals are told apart by {', '.join(SIGNAL_GROUPS)}")
    elif rule.measure in ATTEMPTS:
        if rule.by not in ("deployment", "provider"):
            raise ConfigError(f"rule {rule.name}: attempts are told apart by deployment or provider")
    else:
        _group(rule.by, "sqlite")


def is_graded(rule: Rule) -> bool:
    """Compared only with what the same grader (the signal's ``subject``) said before: its 0.7 is another's 0.8."""
    return rule.measure in ("signal:quality", "signal:faithfulness") and rule.by == "model"


async def measure(session: AsyncSession, rule: Rule, since: datetime, until: datetime) -> dict[str, Stat]:
    """By subject, from ``since`` (included) to ``until``; without what has no subject, such as the rule's tag."""
    if rule.measure in ATTEMPTS:
        return await _of_attempts(session, rule, since, until)
    query, kind, _ = _query(session, rule, since, until)
    return {name: stat for _, name, stat in await _stats(session, query, kind)}


async def measure_pieces(
    session: AsyncSession, rule: Rule, starts: Sequence[datetime]
) -> dict[datetime, dict[str, Stat]]:
    """The same of many windows, each from a multiple of the window since 1970: in a query for each day of them."""
    piece, ordered = rule.window, sorted(starts)
    if rule.measure in ATTEMPTS:
        return {start: await measure(session, rule, start, start + piece) for start in ordered}
    found: dict[datetime, dict[str, Stat]] = {start: {} for start in ordered}
    seconds, at_once = int(piece.total_seconds()), max(1, timedelta(days=1) // piece)
    for some in (ordered[begin : begin + at_once] for begin in range(0, len(ordered), at_once)):
        query, kind, at = _query(session, rule, some[0], some[-1] + piece)
        if _dialect(session) == "sqlite":
            # Without its fraction: SQLite rounds that to milliseconds, so up into the next piece.
            number = cast(func.strftime("%s", func.substr(at, 1, 19)), Integer) // seconds
        else:
            number = cast(func.floor(extract("epoch", at) / seconds), Integer)
        query = query.add_columns(number.label("piece")).group_by("piece")
        for number, name, stat in await _stats(session, query, kind):
            if (start := EPOCH + number * piece) in found:
                found[start][name] = stat
    return found


async def quantiles(session: AsyncSession, rule: Rule, since: datetime, until: datetime) -> dict[str, Stat]:
    """The smallest value that a share ``rule.quantile`` of the values does not exceed."""
    column = COLUMNS[rule.measure]
    group = _group(rule.by, _dialect(session)).label("subject")
    there = [c.started_at >= since, c.started_at < until, column.is_not(None), _known]
    if rule.measure == "cost_of_one":
        there.append(type_coerce(c.cost, Integer64) > 0)
    rows = select(group, column.label("value")).where(*there).subquery()
    ranked = select(
        rows.c.subject,
        rows.c.value,
        func.row_number().over(partition_by=rows.c.subject, order_by=rows.c.value).label("rank"),
        func.count().over(partition_by=rows.c.subject).label("number"),
    ).subquery()
    place = ranked.c.number * rule.quantile
    query = select(ranked.c.subject, ranked.c.value, ranked.c.number).where(
        ranked.c.rank >= place, ranked.c.rank < place + 1
    )
    found = (await session.execute(query)).all()
    return {str(row.subject): Stat("max", float(row.value), int(row.number)) for row in found if row.subject}


async def begun(session: AsyncSession, rule: Rule) -> datetime | None:
    """Since when there is anything to measure."""
    if rule.measure.startswith("signal:"):
        of_kind = signals.c.kind == rule.measure.removeprefix("signal:")
        return await session.scalar(select(signals.c.at).where(of_kind).order_by(signals.c.at).limit(1))
    return await session.scalar(select(c.started_at).order_by(c.started_at).limit(1))


async def culprit(session: AsyncSession, rule: Rule, subject: str, since: datetime, until: datetime) -> dict[str, Any]:
    """Which key, and which user of it, has most of a sum: ``key_id``, ``user``, ``share``, ``value``."""
    if rule.measure.startswith("signal:"):
        s, kind = signals.c, rule.measure.removeprefix("signal:")
        key, user, of, at = s.key_id, s.user, s.value, s.at
        where = [s.kind == kind, _signal_group(rule.by) == subject]
    else:
        key, user, at = c.key_id, c.user, c.started_at
        of = MEASURES[rule.measure].of if rule.measure in MEASURES else literal(1)
        where = [] if rule.by == "all" else [_group(rule.by, _dialect(session)) == subject]
    query = select(key.label("key_id"), user.label("who"), func.sum(of).label("value")).group_by("key_id", "who")
    found = (await session.execute(query.where(*where, at >= since, at < until))).all()
    whole = sum(float(row.value) for row in found)
    if not whole:
        return {}
    most = max(found, key=lambda row: float(row.value))
    share = float(most.value) / whole
    return {"key_id": most.key_id, "user": most.who, "share": round(share, 4), "value": float(most.value)}


# --- parts --------------------------------------------------------------------------------------------------------


def _query(
    session: AsyncSession, rule: Rule, since: datetime, until: datetime
) -> tuple[Select[Any, Any, Any, Any], Kind, ColumnElement[Any]]:
    """What gives ``subject``, ``total``, ``number`` and ``squares``, and the column with the time."""
    if rule.measure.startswith("signal:"):
        return _of_signals(rule, since, until)
    of = MEASURES[rule.measure]
    # Grouped by the column's name: an expression with a parameter in it is another one when repeated.
    query = select(
        _group(rule.by, _dialect(session)).label("subject"),
        func.sum(of.of).label("total"),
        (func.count() if of.over is None else func.sum(of.over)).label("number"),
        _squares(of).label("squares"),
    )
    where = [c.started_at >= since, c.started_at < until, *([of.where] if of.where is not None else ())]
    query = query.where(*where).group_by("subject")
    if rule.compare == "level" and of.kind == "sum" and rule.direction == "up":
        query = query.having(func.sum(of.of) >= rule.clears)  # Conversations are many, and nearly all of them clear.
    return query, of.kind, c.started_at


def _dialect(session: AsyncSession) -> str:
    return session.get_bind().dialect.name


def _group(by: str, dialect: str) -> ColumnElement[Any]:
    if by == "all":
        return literal("all")
    if by == "caller":
        return func.coalesce(c.user, c.key_id)
    return grouping(f"tag:{by}" if by in ("conversation", "session") else by, requests, dialect)


def _squares(of: Measure) -> ColumnElement[Any]:
    return func.sum(of.of * of.of) if of.kind == "mean" and of.over is None else literal(0)


async def _stats(session: AsyncSession, query: Select[Any, Any, Any, Any], kind: Kind) -> list[tuple[int, str, Stat]]:
    """Of each piece, where the query tells pieces apart, and each subject."""
    return [
        (
            row._mapping.get("piece", 0),
            str(row.subject),
            Stat(kind, float(row.total), int(row.number), float(row.squares)),
        )
        for row in (await session.execute(query)).all()
        if row.subject not in (None, "") and row.total is not None
    ]


SIGNAL_GROUPS = ("all", "subject", "model", "user", "key", "caller")


def _signal_group(by: str) -> ColumnElement[Any]:
    s = signals.c
    columns = {"subject": s.subject, "model": s.model, "user": s.user, "key": s.key_id}
    if by == "all":
        return literal("all")
    return func.coalesce(s.user, s.key_id) if by == "caller" else columns[by]


def _of_signals(
    rule: Rule, since: datetime, until: datetime
) -> tuple[Select[Any, Any, Any, Any], Kind, ColumnElement[Any]]:
    kind, s = rule.measure.removeprefix("signal:"), signals.c
    how = SIGNALS[kind]
    total = {"max": func.max, "min": func.min}.get(how, func.sum)(s.value)
    groups = [group := _signal_group(rule.by)]
    if is_graded(rule):
        groups.append(s.subject)
        group = s.model + GRADER + func.coalesce(s.subject, "")
    query = select(
        group.label("subject"),
        total.label("total"),
        func.count().label("number"),
        func.sum(s.value * s.value).label("squares"),
    )
    # By the expression: a column of the table is called "subject" too, and PostgreSQL takes that one.
    return query.where(s.kind == kind, s.at >= since, s.at < until).group_by(*groups), how, s.at


async def _of_attempts(session: AsyncSession, rule: Rule, since: datetime, until: datetime) -> dict[str, Stat]:
    """Calls of models: those that stand in the timelines, and requests that went to their model straight."""
    codes = ATTEMPTS[rule.measure]
    when = [c.started_at >= since, c.started_at < until]
    group, code = (c.deployment if rule.by == "deployment" else c.provider), c.error_code
    straight = select(group.label("subject"), code.label("code"), func.count().label("number"))
    straight = straight.where(*when, c.num_attempts == 0, group.is_not(None)).group_by("subject", "code")

    if _dialect(session) == "sqlite":
        each = func.json_each(c.timeline, "$.attempts").table_valued("value", name="attempt")
        name = func.json_extract(each.c.value, f"$.{rule.by}")
        code = func.json_extract(each.c.value, "$.error_code")
    else:
        each = func.json_array_elements(c.timeline["attempts"]).table_valued("value", name="attempt")
        name, code = each.c.value.op("->>")(rule.by), each.c.value.op("->>")("error_code")
    routed = select(name.label("subject"), code.label("code"), func.count().label("number"))
    routed = routed.select_from(requests.join(each, literal(True))).where(*when, c.num_attempts > 0)
    rows = [
        *(await session.execute(straight)).all(),
        *(await session.execute(routed.group_by("subject", "code"))).all(),
    ]
    bad: dict[str, int] = {}
    asked: dict[str, int] = {}
    for subject, code, number in rows:
        if code is None or code in FAILURES or code in codes:
            asked[subject] = asked.get(subject, 0) + number
            bad[subject] = bad.get(subject, 0) + (number if code in codes else 0)
    return {subject: Stat("share", bad[subject], number) for subject, number in asked.items()}


def standard_errors(now: Stat, before: Stat) -> float:
    """How far apart two shares or means are, in standard errors of their difference; infinite for sums.

    The shares' pooled one (Wald's would be 0 for a share that was 0), the means' of Welch.
    """
    if now.kind not in ("share", "mean") or not now.count or not before.count:
        return math.inf
    if now.kind == "share":
        pooled = Stat("share", now.total + before.total, now.count + before.count).variance
        error = math.sqrt(pooled * (1 / now.count + 1 / before.count))
    else:
        error = math.sqrt(now.variance / now.count + before.variance / before.count)
    return abs(now.value - before.value) / error if error else math.inf


def expected(before: Stat, window: timedelta, stretch: timedelta) -> float:
    """What the window would hold if it were like the stretch before it."""
    return before.total * (window / stretch) if before.kind == "sum" and stretch else before.value
