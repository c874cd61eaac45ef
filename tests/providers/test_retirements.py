"""Which models of a setup retire, and the calendar of it."""

from __future__ import annotations

import re
from datetime import date, timedelta

import pytest

from wootz.core import Config
from wootz.providers.retirements import Retirement, affected, calendar, drills, table, warnings

TODAY = date(2026, 11, 28)
ROWS = [
    Retirement(kind="openai", names=("gpt-4o*",), retires=TODAY + timedelta(days=47), replacement="gpt-9",
               read=TODAY, source="https://example.com"),
    Retirement(kind="anthropic", names=("old-claude",), retires=TODAY, read=TODAY, source="https://example.com"),
    Retirement(kind="openai", names=("later",), retires=TODAY + timedelta(days=200), read=TODAY, source="https://x"),
]  # fmt: skip
CONFIG = Config.model_validate(
    {
        "providers": {
            "anthropic": {"kind": "anthropic"}, "openai": {"kind": "openai"},
            "mine": {"kind": "vllm", "base_url": "http://x/v1"},
        },
        "models": {
            "gpt-4o": {"base_url": "https://api.openai.com/v1"},
            "claude": {"provider": "anthropic", "upstream_model": "old-claude"},
            "later": {"provider": "openai"},
            "proxied": {"base_url": "http://proxy/v1", "upstream_model": "gpt-4o"},
            "served": {"provider": "mine", "upstream_model": "gpt-4o"},
            "local": {"path": "/m"},
        },
        "routes": {"chat": {"targets": ["gpt-4o"], "fallbacks": ["claude"]}, "other": {"targets": ["local"]}},
    }
)  # fmt: skip


def test_models_are_known_by_their_provider_and_its_name_for_them() -> None:
    found = affected(CONFIG, TODAY, ROWS)
    assert [(one.model, one.stage, one.aliases) for one in found] == [
        ("claude", "gone", ("chat",)), ("gpt-4o", "soon", ("chat",)), ("later", "planned", ()),
    ]  # fmt: skip
    assert found[1].words == (
        'model "gpt-4o" retires on 2027-01-14, in 47 days; routes that lead to it: chat; its provider recommends gpt-9'
    )
    assert found[0].words.startswith('model "claude" (old-claude) retired on 2026-11-28; routes')


@pytest.mark.parametrize(
    ("days", "stage"), [(0, "gone"), (1, "late"), (30, "late"), (31, "soon"), (90, "soon"), (91, "planned")]
)
def test_what_a_day_means(days: int, stage: str) -> None:
    row = ROWS[0].model_copy(update={"retires": TODAY + timedelta(days=days)})
    (one,) = affected(CONFIG, TODAY, [row])
    assert one.stage == stage


def test_only_what_is_near_is_warned_of() -> None:
    config = Config.model_validate({"models": {"gpt-4": {"base_url": "https://api.openai.com/v1"}}})
    assert [len(warnings(config, day)) for day in (date(2026, 7, 24), date(2026, 7, 25), TODAY)] == [0, 1, 1]


def test_every_row_of_the_table_has_its_source() -> None:
    for row in table():
        assert row.source.startswith("https://")
        assert row.read <= date(2026, 11, 28)
        assert row.announced is None or row.announced < row.retires
    names = [(row.kind, name) for row in table() for name in row.names]
    assert len(names) == len(set(names))


def test_drills_are_quarterly_first_tuesdays() -> None:
    days = drills(date(2026, 10, 6), 6)
    assert days[:3] == [date(2026, 10, 6), date(2027, 1, 5), date(2027, 4, 6)]
    assert all(day.weekday() == 1 and day.day <= 7 and day.month in (1, 4, 7, 10) for day in days)


def test_the_calendar_is_one_that_others_read() -> None:
    icalendar = pytest.importorskip("icalendar")
    text = calendar(affected(CONFIG, TODAY, ROWS), TODAY)
    events = icalendar.Calendar.from_ical(text).walk("VEVENT")
    days = {str(event["SUMMARY"]): event["DTSTART"].dt for event in events}
    assert days["gpt-4o retires"] == date(2027, 1, 14)
    assert days["Begin to migrate from later"] == TODAY + timedelta(days=110)
    assert len({str(event["UID"]) for event in events}) == len(events) == 8
    assert any("; routes that lead to it: chat" in str(event["DESCRIPTION"]) for event in events)


def test_lines_of_the_calendar_are_folded() -> None:
    """RFC 5545, 3.1: at most 75 octets, CRLF, a space where a line goes on."""
    row = ROWS[0].model_copy(update={"replacement": "é,;" * 60})
    text = calendar(affected(CONFIG, TODAY, [row]), TODAY)
    assert all(len(line.encode()) <= 75 for line in text.split("\r\n"))
    assert "\n" not in text.replace("\r\n", "")
    assert "é\\,\\;" * 60 in re.sub("\r\n ", "", text)
