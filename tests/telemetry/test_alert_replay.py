"""The replay table: each alert fires once on its incident, and none on weeks of ordinary traffic."""

from __future__ import annotations

import shutil
import sqlite3
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from alert_incidents import AT, INCIDENTS, Incident
from alert_traffic import START, WEEK, Traffic
from fresh_database import fresh_sqlite
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from wootz.telemetry.alerts import IncidentRow, Rule, load_rules, replay

DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)
RULES = load_rules()


def traffic_until(file: Path, end: timedelta, seed: int = 1) -> None:
    fresh_sqlite(file)
    traffic = Traffic(file, seed)
    traffic.normal(START, START + end)
    traffic.save()


@pytest.fixture(scope="module")
def usual_days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine days of ordinary traffic."""
    file = tmp_path_factory.mktemp("traffic") / "usual.db"
    traffic_until(file, 9 * DAY)
    return file


class Straight:
    """As much of an `AsyncSession` as a replay needs, without its thread: a week is thousands of small questions."""

    def __init__(self, session: Session) -> None:
        self._session, self.get_bind = session, session.get_bind

    async def execute(self, query: Any) -> Any:
        return self._session.execute(query)

    async def scalar(self, query: Any) -> Any:
        return self._session.scalar(query)


async def replayed(file: Path, rules: dict[str, Rule], since, until, step: timedelta) -> list[IncidentRow]:
    engine = create_engine(f"sqlite:///{file}")
    try:
        with Session(engine) as session:
            return await replay(Straight(session), rules, since, until, step)  # type: ignore[arg-type]
    finally:
        engine.dispose()


def happen(incident: Incident, usual: Path, folder: Path) -> Path:
    file = shutil.copyfile(usual, folder / "incident.db")
    traffic = Traffic(file, seed=7)
    incident.happen(traffic)
    traffic.save()
    return file


def pace(rule: Rule) -> timedelta:
    return max(MINUTE, rule.every, rule.window / 24)


@pytest.mark.parametrize("incident", INCIDENTS, ids=lambda one: one.rule)
async def test_an_alert_fires_once_on_its_incident_and_ends_after_it(incident, usual_days, tmp_path):
    rule, file = RULES[incident.rule], happen(incident, usual_days, tmp_path)
    end = AT + incident.lasts + rule.window + 2 * rule.quiet + 10 * pace(rule)
    opened = await replayed(file, {rule.name: rule}, AT - 4 * pace(rule), end, pace(rule))
    assert [one.subject for one in opened] == [incident.subject]
    assert opened[0].state == "resolved"
    assert AT <= opened[0].opened_at <= AT + incident.lasts + rule.window


async def test_traffic_that_does_not_come_is_noticed(usual_days, tmp_path):
    file = shutil.copyfile(usual_days, tmp_path / "gone.db")
    with sqlite3.connect(file) as db:
        db.execute("delete from requests where started_at between ? and ?", (str(AT)[:19], str(AT + 2 * HOUR)[:19]))
    rule = RULES["traffic-gone"].model_copy(update={"least": 20})
    opened = await replayed(file, {rule.name: rule}, AT - HOUR, AT + 4 * HOUR, 5 * MINUTE)
    assert [(one.subject, one.state) for one in opened] == [("all", "resolved")]


def test_every_rule_has_its_incident():
    assert {one.rule for one in INCIDENTS} | {"traffic-gone"} == RULES.keys()


async def test_an_ordinary_day_is_silent(usual_days):
    opened = await replayed(usual_days, RULES, START + 8 * DAY, START + 9 * DAY, 2 * HOUR)
    assert [(one.rule, one.subject, one.detail) for one in opened] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
async def test_an_ordinary_week_is_silent(seed, tmp_path):
    file = tmp_path / "week.db"
    traffic_until(file, 2 * WEEK, seed)
    opened = await replayed(file, RULES, START + WEEK, START + 2 * WEEK, 20 * MINUTE)
    assert [(one.rule, one.subject, one.detail) for one in opened] == []


@pytest.mark.slow
@pytest.mark.parametrize("incident", INCIDENTS, ids=lambda one: one.rule)
async def test_no_other_alert_fires_on_an_incident(incident, usual_days, tmp_path):
    file = happen(incident, usual_days, tmp_path)
    others = {name: rule for name, rule in RULES.items() if name not in (incident.rule, *incident.companions)}
    opened = await replayed(file, others, AT - HOUR, AT + min(incident.lasts, DAY), 10 * MINUTE)
    assert [(one.rule, one.subject, one.detail) for one in opened] == []
