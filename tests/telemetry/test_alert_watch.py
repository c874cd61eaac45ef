"""The watch: incidents said once whoever looks and however often it dies, told, acted on, silenced."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft7Validator
from standardwebhooks import Webhook

from wootz.core import NotFoundError
from wootz.store.audit import AuditLog
from wootz.telemetry import Ledger, RequestRecord
from wootz.telemetry.alerts import (
    Incidents,
    Links,
    Messenger,
    Plan,
    Receiver,
    Rule,
    Watch,
    load_rules,
    notices,
    secret_bytes,
)
from wootz.telemetry.alerts.evaluate import Finding
from wootz.telemetry.alerts.incidents import advance
from wootz.telemetry.alerts.measures import EPOCH, measure, measure_pieces
from wootz.telemetry.record import AttemptRecord, Timeline
from wootz.telemetry.signals import Signals

NOW = datetime(2026, 3, 10, 3, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@dataclass
class House:
    """A platform's alerts with a clock of their own. ``heard`` is what receivers got; ``status`` what they answer."""

    database: Any
    now: datetime = NOW
    heard: list[tuple[str, bytes, dict[str, str]]] = field(default_factory=list)
    status: int | Exception = 200
    actors: dict[str, Any] = field(default_factory=dict)
    receivers: tuple[Receiver, ...] = (
        Receiver("pager", "https://pager.test/x", secret_bytes(SECRET), "warning", private=False),
    )

    def watch(self, *rules: str, holder: str = "one", acting=(), changes=None, **options) -> Watch:
        chosen = {name: load_rules()[name].model_copy(update=changes or {}) for name in rules}
        clock = lambda: self.now  # noqa: E731
        return Watch(
            database=self.database, rules=chosen, messenger=Messenger(self.database, self.receivers, self.post),
            holder=holder, audit=AuditLog(self.database, clock).append, actors=self.actors, acting=acting,
            links=Links("https://docs.test/{runbook}", "https://console.test"), clock=clock, **options,
        )  # fmt: skip

    async def post(self, url, body, headers, private) -> int:
        if isinstance(self.status, Exception):
            raise self.status
        self.heard.append((url, body, dict(headers)))
        return self.status

    @property
    def events(self) -> list[str]:
        return [json.loads(body)["type"] for _, body, _ in self.heard]

    @property
    def incidents(self) -> Incidents:
        return Incidents(self.database, lambda: self.now)

    async def open(self) -> list[str]:
        return [f"{one.rule} {one.subject}" for one in await self.incidents.list()]

    async def memory_gone(self, *subjects: str) -> None:
        for subject in subjects:
            await Signals(self.database, lambda: self.now).note("out_of_memory", subject=subject)
        self.now += timedelta(seconds=1)


@pytest.fixture
def house(database) -> House:
    return House(database)


@dataclass
class Hands:
    """An actor that remembers."""

    done: list[str] = field(default_factory=list)
    dies: bool = False

    async def plan(self, incident) -> Plan:
        return Plan(f"do something about {incident.subject}", {"subject": incident.subject})

    async def do(self, steps) -> None:
        if self.dies:
            raise KeyboardInterrupt
        self.done.append(f"do {steps['subject']}")

    async def undo(self, steps) -> None:
        self.done.append(f"undo {steps['subject']}")


# --- once ---------------------------------------------------------------------------------------------------------


async def test_an_incident_is_opened_told_and_resolved_once_across_restarts(house):
    await house.memory_gone("local")
    for _ in range(3):  # A process that was started anew each time.
        await house.watch("out-of-memory").tick()
        house.now += MINUTE
    assert await house.open() == ["out-of-memory local"]
    assert house.events == ["incident.opened"]
    house.now += timedelta(minutes=14)
    for _ in range(20):
        await house.watch("out-of-memory").tick()
        house.now += MINUTE
    assert await house.open() == []
    assert house.events == ["incident.opened", "incident.resolved"]
    await house.memory_gone("local")
    await house.watch("out-of-memory").tick()
    assert len(await house.incidents.list(("open", "resolved"))) == 2


async def test_of_several_replicas_one_acts_and_another_takes_over_when_it_is_gone(house):
    await house.memory_gone("a", "b")
    one, two = house.watch("out-of-memory", holder="one"), house.watch("out-of-memory", holder="two")
    for _ in range(2):
        await asyncio.gather(one.tick(), two.tick())
    assert len(house.heard) == 2
    assert one.leads != two.leads
    gone, next_ = (one, two) if one.leads else (two, one)
    await house.memory_gone("c")
    await next_.tick()
    assert not next_.leads
    assert len(house.heard) == 2
    house.now += timedelta(seconds=61)
    await next_.tick()
    assert next_.leads
    assert len(house.heard) == 3
    await gone.tick()
    assert not gone.leads


async def test_a_process_that_can_not_tell_how_it_stands_looks_at_the_rules_all_the_same(house):
    async def fails(*_) -> None:
        raise KeyError("a secret without a version")

    await house.memory_gone("local")
    await house.watch("out-of-memory", look_around=fails).tick()
    assert await house.open() == ["out-of-memory local"]


async def test_who_lost_the_lease_while_it_looked_writes_nothing(house):
    await house.memory_gone("local")
    slow, quick = house.watch("out-of-memory", holder="slow"), house.watch("out-of-memory", holder="quick")
    assert await slow.lease.take()
    findings = await slow._look(house.now)
    house.now += timedelta(seconds=61)
    await quick.tick()
    house.now += timedelta(minutes=15)
    await quick.tick()
    house.now += timedelta(minutes=15)
    await quick.tick()
    assert house.events == ["incident.opened", "incident.resolved"]
    await slow._write(findings, house.now)  # Its news is half an hour old.
    assert await house.open() == []


RULE = Rule.model_validate(
    {"name": "r", "about": "", "severity": "warning", "measure": "cost", "window": "5m", "fires": 10, "clears": 5,
     "hold": "2m", "quiet": "3m", "runbook": "r"}
)  # fmt: skip


STRETCHES = st.lists(
    st.tuples(st.sampled_from([None, 0.0, 4.9, 5.0, 7.0, 9.9, 10.0, 15.0]), st.integers(1, 6)), max_size=12
)


@given(STRETCHES)
def test_incidents_never_overlap_and_open_and_end_as_the_rule_says(stretches):
    """Against the definition, written plainly: open after 2 minutes at 10 or more, over after 3 below 5."""
    values = [value for value, minutes in stretches for _ in range(minutes)]
    live, opened, ended, over = {}, [], [], 0
    firing_since: int | None = None
    for minute, value in enumerate(values):
        now = NOW + minute * MINUTE
        found = [] if value is None else [Finding("s", value, value, RULE.is_firing(value), RULE.is_clear(value))]
        change = advance(RULE, live, found, now)
        live |= {row.subject: row for row in change.new}
        for row in (*change.dropped, *change.resolved):
            del live[row.subject]
        opened += [minute] * len(change.opened)
        ended += [minute] * len(change.resolved)
        assert len(live) <= 1
        is_open = len(opened) > len(ended)
        if is_open or change.resolved:
            over = over + 1 if value is None or value < 5 else 0
            firing_since = None
            assert bool(change.resolved) == (over == 4)
            if change.resolved:
                over = 0
        else:
            firing_since = (minute if firing_since is None else firing_since) if (value or 0) >= 10 else None
            assert firing_since is None or minute - firing_since < 2
        if change.opened:
            over = 0


# --- told ---------------------------------------------------------------------------------------------------------


async def test_webhooks_are_signed_as_the_standards_own_library_checks_it(house):
    await house.memory_gone("local")
    house.now = datetime.now(UTC)  # The library refuses what is older than five minutes.
    await house.memory_gone("local")
    await house.watch("out-of-memory").tick()
    ((url, body, headers),) = house.heard
    told = Webhook(SECRET).verify(body, headers)
    assert url == "https://pager.test/x"
    assert told["type"] == "incident.opened"
    data = told["data"]
    assert data["rule"] == "out-of-memory"
    assert data["subject"] == "local"
    assert data["state"] == "open"
    assert data["runbook"] == "https://docs.test/out-of-memory"
    assert data["console"] == f"https://console.test/alerts/{data['id']}"
    with pytest.raises(Exception, match="signature"):
        Webhook(SECRET).verify(body.replace(b"local", b"lokal"), headers)


async def test_a_receiver_that_is_down_hears_it_later_under_the_same_id_and_then_no_more(house):
    await house.memory_gone("local")
    house.status = 503
    for _ in range(4):
        await house.watch("out-of-memory").tick()
        house.now += timedelta(seconds=11)
    house.status = OSError()
    house.now += MINUTE
    await house.watch("out-of-memory").tick()
    house.status = 200
    house.now += timedelta(minutes=5)
    await house.watch("out-of-memory").tick()
    await house.watch("out-of-memory").tick()
    assert len({headers["webhook-id"] for _, _, headers in house.heard}) == 1
    (incident,) = await house.incidents.list()
    (notice,) = await house.incidents.notices(incident.id)
    assert notice.delivered_at == house.now
    assert notice.due_at is None
    assert len(house.heard) == notice.attempts - 1


async def test_a_receiver_that_hangs_keeps_neither_the_others_nor_the_watch_waiting(house, monkeypatch):
    monkeypatch.setattr(notices, "DELIVERY_SECONDS", 1.0)
    monkeypatch.setattr(notices, "AT_ONCE", 3)
    hanging = Receiver("hangs", "https://hangs.test/", b"s", "warning", private=False)
    house.receivers = (hanging, *house.receivers)

    async def post(url, *rest) -> int:
        if url == hanging.url:
            await asyncio.Event().wait()
        return await House.post(house, url, *rest)

    house.post = post
    await house.memory_gone("a", "b", "c", "d")
    async with asyncio.timeout(30):
        await house.watch("out-of-memory").tick()
    assert house.events == ["incident.opened"] * 3
    (first, *_) = [await house.incidents.notices(one.id) for one in await house.incidents.list()]
    assert {notice.receiver: notice.attempts for notice in first}["hangs"] == 0


async def test_each_notice_has_the_time_at_which_it_is_posted(house):
    async def slowly(*rest) -> int:
        await House.post(house, *rest)
        house.now += timedelta(seconds=9)
        return 200 if len(house.heard) == 1 else 503

    house.post = slowly
    await house.memory_gone("a", "b")
    began = house.now
    await house.watch("out-of-memory").tick()
    seconds = [int(headers["webhook-timestamp"]) - int(began.timestamp()) for _, _, headers in house.heard]
    assert seconds == [0, 9]
    told = [notice for one in await house.incidents.list() for notice in await house.incidents.notices(one.id)]
    assert {notice.delivered_at for notice in told} == {began + timedelta(seconds=9), None}
    assert {notice.due_at for notice in told} == {began + timedelta(seconds=28), None}


async def test_an_alertmanager_is_pushed_what_is_open_in_its_own_words(house):
    await house.memory_gone("local")
    watch = house.watch("out-of-memory", alertmanager="http://am.test:9093/")
    await watch.tick()
    await watch.tick()
    (first,) = [(url, body) for url, body, _ in house.heard if "am.test" in url]
    assert first[0] == "http://am.test:9093/api/v2/alerts"
    alerts = json.loads(first[1])
    Draft7Validator(POSTABLE_ALERTS, format_checker=Draft7Validator.FORMAT_CHECKER).validate(alerts)
    assert alerts[0]["labels"]["alertname"] == "WootzOutOfMemory"
    house.now += timedelta(minutes=14)
    while await house.open():
        house.now += MINUTE
        await watch.tick()
    house.now += MINUTE
    await watch.tick()
    (alert,) = json.loads(house.heard[-1][1])
    assert datetime.fromisoformat(alert["endsAt"]) <= house.now


POSTABLE_ALERTS = {
    # https://github.com/prometheus/alertmanager/blob/main/api/v2/openapi.yaml, its definitions put in place.
    "type": "array",
    "items": {
        "type": "object",
        "required": ["labels"],
        "additionalProperties": False,
        "properties": {
            "startsAt": {"type": "string", "format": "date-time"},
            "endsAt": {"type": "string", "format": "date-time"},
            "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}, "required": ["alertname"]},
            "generatorURL": {"type": "string", "format": "uri"},
        },
    },
}


async def test_a_silence_is_recorded_not_told_and_told_when_it_ends(house):
    hands = house.actors["fail_over"] = Hands()
    silence = await house.incidents.silence("out-of-memory", None, timedelta(minutes=5), why="drill", by="ann")
    await house.memory_gone("local")
    changes = {"action": "fail_over"}
    watch = house.watch("out-of-memory", acting=["fail_over"], changes=changes)
    await watch.tick()
    assert await house.open() == ["out-of-memory local"]
    assert house.heard == []
    assert hands.done == []
    await house.incidents.end_silence(silence.id)
    house.now += MINUTE
    await watch.tick()
    assert house.events == ["incident.opened"]
    assert hands.done == ["do local"]


async def test_critical_incidents_are_told_again_until_somebody_is_on_it(house):
    watch = house.watch("out-of-memory", changes={"window": timedelta(days=1)})
    await house.memory_gone("local")
    await watch.tick()
    house.now += timedelta(minutes=61)
    await watch.tick()
    assert house.events == ["incident.opened", "incident.reminded"]
    (incident,) = await house.incidents.list()
    await house.incidents.acknowledge(incident.id[:10], by="ann")
    house.now += timedelta(hours=2)
    await watch.tick()
    assert len(house.events) == 2
    assert (await house.incidents.acknowledge(incident.id, by="bob")).acknowledged_by == "ann"
    with pytest.raises(NotFoundError):
        await house.incidents.get("inc-no")


async def test_a_rule_that_is_switched_off_leaves_no_incident_open(house):
    await house.memory_gone("local")
    await house.watch("out-of-memory").tick()
    await house.watch("errors").tick()
    assert await house.open() == []


# --- done ---------------------------------------------------------------------------------------------------------


async def test_an_action_is_only_said_unless_the_config_lets_it_be_done(house):
    hands = house.actors["fail_over"] = Hands()
    await house.memory_gone("local")
    await house.watch("out-of-memory", changes={"action": "fail_over"}).tick()
    (incident,) = await house.incidents.list()
    assert (incident.action_state, incident.action_detail["what"]) == ("dry-run", "would do something about local")
    assert hands.done == []


async def test_an_action_is_done_undone_when_it_is_over_and_audited(house):
    hands = house.actors["fail_over"] = Hands()
    await house.memory_gone("local")
    watch = house.watch("out-of-memory", acting=["fail_over"], changes={"action": "fail_over"})
    await watch.tick()
    assert hands.done == ["do local"]
    house.now += timedelta(minutes=15)
    for _ in range(17):
        await watch.tick()
        house.now += MINUTE
    assert hands.done == ["do local", "undo local"]
    log = AuditLog(house.database)
    assert [entry.action for entry in await log.entries()] == ["alert.fail_over.undone", "alert.fail_over.done"]
    told = [entry.detail for entry in await log.entries()]
    assert told == 2 * [{"rule": "out-of-memory", "steps": {"subject": "local"}}], (
        "ids, and no words, which may name a person"
    )
    assert (await log.verify()).holds


async def test_who_dies_while_acting_leaves_it_to_the_next(house):
    hands = house.actors["fail_over"] = Hands(dies=True)
    await house.memory_gone("local")
    options = {"acting": ["fail_over"], "changes": {"action": "fail_over"}}
    with pytest.raises(KeyboardInterrupt):
        await house.watch("out-of-memory", **options).tick()
    hands.dies = False
    await house.watch("out-of-memory", **options).tick()
    assert hands.done == ["do local"]


async def test_who_has_most_of_it_is_kept_with_the_incident(house):
    signals = Signals(house.database, lambda: house.now)
    await signals.note_all([{"kind": "injection_attempt", "user": "mallory", "key_id": "key-1"}] * 12)
    await signals.note_all([{"kind": "injection_attempt", "user": "ann", "key_id": "key-2"}] * 3)
    house.now += timedelta(seconds=1)
    await house.watch("injection-attempts").tick()
    (incident,) = await house.incidents.list()
    assert incident.subject == "mallory"
    assert incident.detail["culprit"] == {"key_id": "key-1", "user": "mallory", "share": 1.0, "value": 12.0}


@pytest.mark.parametrize("changes", [{"enabled": False}, None], ids=["disabled", "removed"])
@pytest.mark.parametrize("hold", [timedelta(0), timedelta(hours=1)], ids=["open", "pending"])
async def test_an_incident_of_a_rule_that_is_gone_ends(house, changes, hold):
    await house.memory_gone("local")
    await house.watch("out-of-memory", changes={"hold": hold}).tick()
    assert len(await house.incidents.list(("open", "pending"))) == 1
    house.now += MINUTE
    await house.watch(*(["out-of-memory"] if changes else []), changes=changes).tick()
    assert [one.state for one in await house.incidents.list(("open", "pending", "resolved"))] == (
        [] if hold else ["resolved"]
    )


# --- measured the same on both databases --------------------------------------------------------------------------


async def test_attempts_in_timelines_and_straight_requests_are_counted_alike(house):
    ledger = Ledger(house.database)

    async def request(number: int, code: str | None, routed: bool) -> None:
        attempts = (
            AttemptRecord(deployment="near", provider="far.test", start=0.0, error_code=code),
            AttemptRecord(deployment="spare", provider="far.test", start=0.1),
        )
        await ledger.write(
            RequestRecord(
                request_id=f"req-{number}", started_at=house.now, route="/v1/chat/completions", key_id=None,
                model="chat", provider="far.test", stream=False, status=200, deployment="spare" if routed else "near",
                error_code=None if routed else code, num_attempts=2 if routed else 0,
                timeline=Timeline(attempts=attempts) if routed else Timeline(),
            )
        )  # fmt: skip

    for number in range(20):
        await request(number, "upstream_error" if number % 4 == 0 else None, routed=number % 2 == 0)
    house.now += timedelta(seconds=1)
    await house.watch("provider-errors").tick()
    (incident,) = await house.incidents.list()
    assert (incident.subject, incident.value, incident.detail["samples"]) == ("near", 0.25, 20)
    await ledger.close()


@pytest.mark.parametrize("name", ["refusals", "guardrail-trips", "quality-drift"])
async def test_pieces_that_are_read_together_are_those_that_are_read_alone(house, name):
    """On their borders too: a moment belongs to the piece that it begins."""
    rule, ledger, rows = load_rules()[name], Ledger(house.database), []
    last = (NOW - EPOCH) // rule.window
    starts = [EPOCH + n * rule.window for n in range(last - 40, last)]
    for number, start in enumerate(starts[::3]):
        for moment in (start - timedelta(microseconds=1), start, start + timedelta(microseconds=1)):
            of = {"at": moment, "model": "near", "subject": f"by {number % 2}"}
            rows += [{"kind": "quality", "value": number / 20} | of, {"kind": "guardrail_trip"} | of]
            await ledger.write(
                RequestRecord(
                    request_id=f"req-{len(rows)}", started_at=moment, route="/v1/chat/completions", key_id=None,
                    model="chat", provider="far.test", stream=False, status=200, refused=number % 3 == 0,
                )
            )  # fmt: skip
    await Signals(house.database).note_all(rows)
    await ledger.close()
    async with house.database.session() as session:
        together = await measure_pieces(session, rule, starts)
        alone = {start: await measure(session, rule, start, start + rule.window) for start in starts}
    assert together == alone
    assert sum(stat.count for found in together.values() for stat in found.values()) == 14 * 3 - 1
