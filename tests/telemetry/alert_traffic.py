"""Traffic as it might have been, for alerts to be tried on: weeks of it with days and nights, and incidents in it.

Everything is drawn from a seed. Rows go straight into a SQLite file: two weeks in a second.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

START = datetime(2026, 3, 2, tzinfo=UTC)  # A Monday.
WEEK = timedelta(days=7)
USERS = [f"user-{number}" for number in range(12)]
PER_HOUR = 60
DEFAULTS: dict[str, Any] = {
    "route": "/v1/chat/completions", "key_id": "key-1", "model": "chat", "provider": "far.test", "stream": 0,
    "status": 200, "error_code": None, "finish_reason": "stop", "refused": 0, "prompt_tokens": 1000,
    "cached_tokens": 600, "cache_write_tokens": 0, "completion_tokens": 100, "reasoning_tokens": 0,
    "cost": 2_000_000_000, "priced": 1, "time_to_first_token": 0.5, "inter_token_latency": 0.02, "queue_time": 0.01,
    "duration": 2.5, "client_disconnected": 0, "user": "user-0", "deployment": "near", "num_attempts": 1,
    "lane": "interactive", "cache": "miss", "tags": '{"feature": "search"}', "timeline": None,
}  # fmt: skip


def attempt(deployment: str = "near", error_code: str | None = None) -> dict[str, Any]:
    return {"deployment": deployment, "provider": "far.test", "start": 0.0, "error_code": error_code}


def timeline(*attempts: dict[str, Any]) -> str:
    return json.dumps({"attempts": attempts})


GOOD = timeline(attempt())


class Traffic:
    """A ledger being filled. ``random`` is for whoever draws incidents, too."""

    def __init__(self, file: Path, seed: int) -> None:
        self.file, self.random = file, Random(seed)
        self.number = 0
        self.rows: list[dict[str, Any]] = []
        self.signals: list[tuple[str, str, float, str | None, str | None, str | None, str | None]] = []

    def request(self, at: datetime, **fields: Any) -> None:
        self.number += 1
        row = DEFAULTS | {"timeline": GOOD} | fields
        self.rows.append({"request_id": f"{self.file.stem}-{self.number}", "started_at": _text(at), **row})

    def signal(self, at: datetime, kind: str, value: float = 1.0, **of: str | None) -> None:
        names = (of.get("subject"), of.get("model"), of.get("user"), of.get("key_id"))
        self.signals.append((_text(at), kind, value, *names))

    def moments(self, since: datetime, until: datetime, per_hour: float) -> Iterator[datetime]:
        """A Poisson process, steady."""
        at = since
        while (at := at + timedelta(hours=self.random.expovariate(per_hour))) < until:
            yield at

    def normal(self, since: datetime, until: datetime, per_hour: float = PER_HOUR, **fields: Any) -> None:
        """By day four times what comes by night, on Saturdays and Sundays half of it; now and then a failure."""
        random = self.random
        for at in self.moments(since, until, 1.6 * per_hour):
            if random.random() < _load(at) / 1.6:
                self.usual(at, **fields)

    def usual(self, at: datetime, **fields: Any) -> None:
        """One request. Lengths are log-normal; one in a hundred is asked twice, one in fifty is refused."""
        random = self.random
        size = math.exp(random.gauss(0, 0.5))
        prompt, completion = int(1000 * size), int(100 * size)
        row = {
            "user": random.choice(USERS),
            "prompt_tokens": prompt,
            "cached_tokens": int(prompt * random.uniform(0.4, 0.8)),
            "completion_tokens": completion,
            "cost": 2_000_000 * prompt,
            "refused": int(random.random() < 0.02),
            "duration": 2.5 * size,
            "time_to_first_token": 0.5 * size,
            "cache": "exact" if random.random() < 0.3 else "miss",
            "tags": json.dumps({"feature": random.choice(("search", "chat")), "conversation": f"c{self.number}"}),
        }
        key = fields.get("key_id", DEFAULTS["key_id"])
        self.signal(at, "resolved", float(random.random() < 0.7), subject=f"c{self.number}", key_id=key)
        if random.random() < 0.01:
            row |= {"timeline": timeline(attempt(error_code="upstream_error"), attempt("spare")), "num_attempts": 2,
                    "deployment": "spare"}  # fmt: skip
        self.request(at, **row | fields)
        if random.random() < 0.05:
            grade = min(1.0, max(0.0, random.gauss(0.8, 0.1)))
            self.signal(at, "quality", grade, model="near")
            self.signal(at, "faithfulness", grade, model="near")
        if random.random() < 0.001:
            self.signal(at, "injection_attempt", user=random.choice(USERS), key_id="key-1")
        if random.random() < 0.02:
            self.signal(at, "guardrail_trip", subject="pii")

    def save(self) -> None:
        with sqlite3.connect(self.file) as db:
            if self.rows:
                names = list(self.rows[0])
                places = ", ".join(f":{name}" for name in names)
                columns = ", ".join(f'"{name}"' for name in names)
                db.executemany(f"insert into requests ({columns}) values ({places})", self.rows)
            db.executemany(
                'insert into signals (at, kind, value, subject, model, "user", key_id) values (?, ?, ?, ?, ?, ?, ?)',
                self.signals,
            )
        db.close()
        self.rows, self.signals = [], []


def _text(at: datetime) -> str:
    return at.replace(tzinfo=None).strftime("%Y-%m-%d %H:%M:%S.%f")


def _load(at: datetime) -> float:
    """1 on average over the week, 1.6 at most."""
    day = 1 - 0.6 * math.cos((at.hour + at.minute / 60 - 3) / 24 * 2 * math.pi)
    return min(1.6, day * (0.5 if at.weekday() >= 5 else 1.0))
