"""When remote models stop answering: `retirements.toml`, dated data with sources, held against a config.

A retiring model is known by its provider's kind and the name that the provider knows it by. What follows from a day is
always the same (`Stage`): in the last 90 days the successor is tried in the shadow and by a canary, which takes two
weeks at least; in the last 30 it is late; then the model is gone, and every request for it fails.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import Literal
from urllib.parse import urlsplit

from wootz.core import Config
from wootz.core.sections import ProviderKind, Section

SOON, LATE = 90, 30
"""Days before the last."""

Stage = Literal["gone", "late", "soon", "planned"]


class Retirement(Section):
    kind: ProviderKind
    names: tuple[str, ...]
    retires: date
    """The first day without it."""
    earliest: bool = False
    """The provider says "not before"."""
    announced: date | None = None
    replacement: str | None = None
    """What the provider recommends."""
    read: date
    source: str


@dataclass(frozen=True)
class Affected:
    """A model of the config that retires."""

    model: str
    """Its name in the config."""
    upstream: str
    aliases: tuple[str, ...]
    """Routes that lead to it."""
    retirement: Retirement
    days_left: int

    @property
    def stage(self) -> Stage:
        days = self.days_left
        return "gone" if days <= 0 else "late" if days <= LATE else "soon" if days <= SOON else "planned"

    @property
    def words(self) -> str:
        row = self.retirement
        about = f'model "{self.model}"' if self.upstream == self.model else f'model "{self.model}" ({self.upstream})'
        when = "retired on" if self.days_left <= 0 else "retires on"
        text = f"{about} {when}{' or after' if row.earliest else ''} {row.retires}"
        if self.days_left > 0:
            text += f", in {self.days_left} days"
        if self.aliases:
            text += f"; routes that lead to it: {', '.join(self.aliases)}"
        return text + (f"; its provider recommends {row.replacement}" if row.replacement else "")


@cache
def table() -> tuple[Retirement, ...]:
    rows = tomllib.loads((files("wootz.providers") / "retirements.toml").read_text())["model"]
    return tuple(Retirement.model_validate(row) for row in rows)


def affected(config: Config, today: date, rows: Iterable[Retirement] | None = None) -> list[Affected]:
    """The models of this config that have a day, the soonest first."""
    found = []
    rows = tuple(table() if rows is None else rows)
    for name, model in config.models.items():
        kind: ProviderKind | None = "openai"
        if model.provider is not None:
            kind = config.providers[model.provider].kind
        elif model.base_url is None or urlsplit(model.base_url).hostname != "api.openai.com":
            continue  # A local model, or an endpoint that may serve anything by any name.
        upstream = model.upstream_model or name
        for row in rows:
            if row.kind == kind and any(fnmatchcase(upstream, pattern) for pattern in row.names):
                aliases = tuple(route for route, one in config.routes.items() if name in one.members)
                found.append(Affected(name, upstream, aliases, row, (row.retires - today).days))
                break
    return sorted(found, key=lambda one: (one.retirement.retires, one.model))


def warnings(config: Config, today: date) -> list[str]:
    """A sentence for each model that is gone or has 90 days left."""
    return [one.words for one in affected(config, today) if one.stage != "planned"]


def drills(today: date, number: int = 4) -> list[date]:
    """The next first Tuesdays of a quarter: the days on which a migration is practised, there and back."""
    days = []
    year, quarter = today.year, (today.month - 1) // 3
    while len(days) < number:
        first = date(year, 3 * quarter + 1, 1)
        drill = first + timedelta(days=(1 - first.weekday()) % 7)
        if drill >= today:
            days.append(drill)
        year, quarter = (year + 1, 0) if quarter == 3 else (year, quarter + 1)
    return days


def calendar(found: Iterable[Affected], today: date) -> str:
    """iCalendar (RFC 5545): the last days, a reminder 90 days before each, and the quarterly drills."""
    events: list[tuple[date, str, str]] = []
    for one in found:
        row = one.retirement
        events.append((row.retires, f"{one.model} retires", f"{one.words}. Source: {row.source}, read {row.read}."))
        if (start := row.retires - timedelta(days=SOON)) > today:
            about = f"It retires on {row.retires}. wootz migrate start --from {one.model} --to …"
            events.append((start, f"Begin to migrate from {one.model}", about))
    for day in drills(today):
        about = "Practise it: wootz migrate start, advance --force to canary, rollback. See docs/migrations.md."
        events.append((day, "Migration drill", about))
    lines = ["BEGIN:VCALENDAR", "VERSION:2.0", "PRODID:-//wootz//model retirements//EN"]
    for day, summary, about in sorted(events):
        uid = hashlib.sha256(f"{day}{summary}".encode()).hexdigest()[:32]
        lines += ["BEGIN:VEVENT", f"UID:{uid}@wootz", f"DTSTAMP:{today:%Y%m%d}T000000Z",
                  f"DTSTART;VALUE=DATE:{day:%Y%m%d}", f"SUMMARY:{_escape(summary)}",
                  f"DESCRIPTION:{_escape(about)}", "END:VEVENT"]  # fmt: skip
    return "".join(f"{_fold(line)}\r\n" for line in [*lines, "END:VCALENDAR"])


def _escape(text: str) -> str:
    for char in "\\;,":
        text = text.replace(char, f"\\{char}")
    return text.replace("\n", "\\n")


def _fold(line: str) -> str:
    """Lines of at most 75 octets, never cut inside of a character."""
    pieces, piece = [], b""
    for char in line:
        octets = char.encode()
        if len(piece) + len(octets) > (75 if not pieces else 74):
            pieces.append(piece)
            piece = b""
        piece += octets
    return "\r\n ".join(part.decode() for part in [*pieces, piece])
