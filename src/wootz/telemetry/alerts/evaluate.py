"""One rule, looked at once: what holds for each of its subjects now, in numbers that an operator can check.

The judgement is only this. Whether it has held for long enough, and whether that was said already, is `incidents.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from statistics import median
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from wootz.telemetry.alerts.measures import (
    COLUMNS,
    EPOCH,
    GRADER,
    Stat,
    begun,
    expected,
    is_graded,
    measure,
    measure_pieces,
    quantiles,
    standard_errors,
)
from wootz.telemetry.alerts.resolved import pairs
from wootz.telemetry.alerts.rules import Rule


@dataclass(frozen=True)
class Finding:
    """Of one subject. ``judged`` is what the thresholds are for: the value, or its ratio to something."""

    subject: str
    judged: float
    value: float
    is_firing: bool
    is_clear: bool
    detail: dict[str, Any] = field(default_factory=dict)
    """For people: what it was compared with, and how many samples that are."""


class Baselines:
    """What the days before were like, for rules that compare with them.

    A stretch is added up from pieces as long as the rule's window, and each piece is read once: a look a minute later
    reads nothing, and one in the next window a single piece. Only the first look reads the whole stretch.
    """

    def __init__(self) -> None:
        self._pieces: dict[str, dict[datetime, dict[str, Stat]]] = {}
        self._begun: dict[str, tuple[datetime, datetime]] = {}

    async def of(self, session: AsyncSession, rule: Rule, now: datetime) -> tuple[dict[str, Stat], timedelta]:
        """The sums over whole pieces before the window, and how long they are together; no piece is older than the
        records themselves."""
        piece = rule.window
        end = now - piece - (now - EPOCH) % piece
        first = await self.begun(session, rule, now) or now
        count = max(0, min(int(rule.baseline / piece), int((end - first) / piece)))
        starts = [end - n * piece for n in range(1, count + 1)]
        old = self._pieces.get(rule.name, {})
        kept = self._pieces[rule.name] = {start: old[start] for start in starts if start in old}
        if missing := [start for start in starts if start not in kept]:
            kept |= await measure_pieces(session, rule, missing)
        sums: dict[str, Stat] = {}
        for stats in kept.values():
            for name, stat in stats.items():
                sums[name] = sums[name] + stat if name in sums else stat
        return sums, count * piece

    async def begun(self, session: AsyncSession, rule: Rule, now: datetime) -> datetime | None:
        """Since when there is anything to measure. Asked once in a window: what is old goes slowly."""
        asked, first = self._begun.get(rule.name, (now, None))
        if first is None or now - asked >= rule.window:
            first = await begun(session, rule)
            if first is not None:
                self._begun[rule.name] = now, first
        return first


async def evaluate(session: AsyncSession, rule: Rule, now: datetime, baselines: Baselines) -> list[Finding]:
    """What can be judged. A subject without enough samples is not among them, and counts as clear."""
    findings = await _judge(session, rule, now, baselines)
    return _of_models(findings) if is_graded(rule) else findings


async def _judge(session: AsyncSession, rule: Rule, now: datetime, baselines: Baselines) -> list[Finding]:
    since = now - rule.window
    if rule.compare == "older":
        return await _against_older(session, rule, now)
    if rule.measure in COLUMNS:
        found = await quantiles(session, rule, since, now)
        return [_finding(rule, name, stat, stat.value) for name, stat in found.items() if stat.count >= rule.least]
    if rule.compare in ("before", "ago") and not await _goes_back(session, rule, now, baselines):
        return []
    found = await measure(session, rule, since, now)
    if rule.compare == "level":
        return [
            _finding(rule, name, stat, stat.value, matters=stat.kind != "share" or stat.total >= rule.cases)
            for name, stat in found.items()
            if stat.count >= rule.least
        ]
    if rule.compare == "peers":
        return _against_peers(rule, found)
    return await _against_the_past(session, rule, found, now, baselines)


async def _goes_back(session: AsyncSession, rule: Rule, now: datetime, baselines: Baselines) -> bool:
    first = await baselines.begun(session, rule, now)
    needed = rule.history or (rule.baseline if rule.compare == "ago" else rule.window)
    return first is not None and first <= now - rule.window - needed


async def _against_the_past(
    session: AsyncSession, rule: Rule, found: dict[str, Stat], now: datetime, baselines: Baselines
) -> list[Finding]:
    if rule.compare == "before":
        past, stretch = await baselines.of(session, rule, now)
    else:
        end, stretch = now - rule.baseline, rule.window
        past = await measure(session, rule, end - rule.window, end)
    if rule.direction == "down" and rule.measure == "requests":
        found = {name: Stat("sum", 0.0, 0) for name in past} | found
    findings = []
    for name, stat in found.items():
        before = past.get(name)
        if before is None or not (usual := expected(before, rule.window, stretch)):
            continue
        # What is missing can't be counted where it is missing.
        samples, floored = (before, usual) if rule.direction == "down" else (stat, stat.value)
        enough = samples.count >= rule.least and before.count >= rule.least
        if not enough and not (rule.direction == "up" and stat.kind == "sum"):
            continue
        if rule.direction == "down" and stat.kind != "sum" and stat.count < rule.least:
            continue
        far = standard_errors(stat, before)
        matters = floored >= rule.floor and far >= rule.z
        detail = {"usual": usual, "samples": stat.count, "samples_before": before.count}
        if math.isfinite(far):
            detail["standard_errors"] = round(far, 1)
        findings.append(_finding(rule, name, stat, stat.value / usual, detail, matters=matters))
    return findings


def _against_peers(rule: Rule, found: dict[str, Stat]) -> list[Finding]:
    values = [stat.value for stat in found.values() if stat.value > 0]
    if len(values) < rule.least:
        return []
    middle = median(values)
    detail = {"median": middle, "peers": len(values)}
    return [
        _finding(rule, name, stat, stat.value / middle, detail, matters=stat.value >= rule.floor)
        for name, stat in found.items()
    ]


async def _against_older(session: AsyncSession, rule: Rule, now: datetime) -> list[Finding]:
    findings = []
    for model, pair in (await pairs(session, rule, now)).items():
        matters = pair.standard_errors >= rule.z and not pair.is_better
        newer, older = pair.quality
        detail = {
            "newer": pair.newer,
            "older": pair.older,
            "usual": pair.before.value,
            "conversations": pair.now.conversations,
            "quality": None if newer is None or older is None else [round(newer, 4), round(older, 4)],
        }
        stat = Stat("sum", pair.now.value, pair.now.conversations)
        findings.append(_finding(rule, model, stat, pair.ratio, detail, matters=matters))
    return findings


def _of_models(findings: list[Finding]) -> list[Finding]:
    """By each model's sternest grader: the one by whom it fires, else by whom it lost most."""
    sternest: dict[str, Finding] = {}
    for finding in sorted(findings, key=lambda one: (one.is_firing, -one.judged)):
        model, _, grader = finding.subject.partition(GRADER)
        detail = finding.detail | ({"grader": grader} if grader else {})
        sternest[model] = replace(finding, subject=model, detail=detail)
    return list(sternest.values())


def _finding(
    rule: Rule, name: str, stat: Stat, judged: float, detail: dict[str, Any] | None = None, *, matters: bool = True
) -> Finding:
    return Finding(
        subject=name,
        judged=judged,
        value=stat.value,
        is_firing=matters and rule.is_firing(judged),
        is_clear=rule.is_clear(judged),
        detail=detail or {"samples": stat.count},
    )
