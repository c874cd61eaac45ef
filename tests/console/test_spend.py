"""Spend, and one request's way: what they show, to whom, and that what others wrote is text on them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kept_bodies import some_master_key, write_with_body

from wootz.console import formats
from wootz.console.charts import HEIGHT, WIDTH, Series, nice_ceiling, stacked_bars
from wootz.console.formats import cents, share
from wootz.console.site import Site
from wootz.console.spend import MAX_SERIES, spending
from wootz.console.tracks import tracks
from wootz.gateway.limits import Limits
from wootz.store.secrets import wrapper_of
from wootz.telemetry import AttemptRecord, RequestRecord, SpanRecord, Timeline

HOSTILE = """<img src=x onerror="alert(1)">'\"</script><script>alert(2)</script>"""
NOW = datetime(2026, 5, 8, 15, 30, tzinfo=UTC)


def record(request_id: str, **fields) -> RequestRecord:
    defaults = {
        "started_at": datetime.now(UTC), "route": "/v1/chat/completions", "key_id": None, "model": "scripted",
        "provider": "script", "stream": True, "status": 200, "cost": Decimal("0.25"),
    }  # fmt: skip
    return RequestRecord(request_id=request_id, **(defaults | fields))


def whole(request_id: str = "req-1", text: str = "plain", **fields) -> RequestRecord:
    """A request with all there is on its page."""
    timeline = Timeline(
        spans=(
            SpanRecord(name=f"hold{text}", start=0.0, end=0.1, attributes={"a": text}),
            SpanRecord(name="open", start=0.1),
        ),
        attempts=(
            AttemptRecord(deployment=f"near{text}", provider=text, start=0.1, end=0.3, error_code=f"e{text}"),
            AttemptRecord(deployment=f"far{text}", provider=text, start=0.4, first_token=0.6, end=1.0, prompt_tokens=9),
        ),
        notes=(f"because {text}",),
    )
    return record(
        request_id, duration=1.0, timeline=timeline, num_attempts=2, deployment=f"far{text}", team_id=text,
        tags={f"feature{text}": text}, tools=(text,), price=text, **fields,
    )  # fmt: skip


async def test_spending_is_summed_by_day_and_by_what_was_asked(house, admin):
    for n, cost in enumerate(("1", "0.000000000001", "2")):
        await house.ledger.write(record(f"r{n}", cost=Decimal(cost), model="other" if n == 2 else "scripted"))
    await house.ledger.write(record("old", started_at=datetime.now(UTC) - timedelta(days=8), cost=Decimal(5)))
    page = (await admin.get("/spend")).text
    assert "$3.00" in page
    assert "$1.000000000001" in page
    assert page.index('title="other"') < page.index('title="scripted"')  # Costliest first.
    assert len(re.findall(r'<rect class="series-', page)) == 2
    assert "$8.00" in (await admin.get("/spend?since=30d")).text


async def test_what_has_no_known_price_is_said_to_be_missing(house, admin):
    await house.ledger.write(record("r1", priced=False, cost=Decimal(0)))
    page = (await admin.get("/spend")).text
    assert "1 requests used tokens whose price nobody knows" in page
    assert "+ ?" in page
    assert "unknown" in (await admin.get("/requests")).text


async def test_an_empty_ledger_has_a_page_too(admin):
    assert "Nothing spent yet" in (await admin.get("/spend")).text


@pytest.mark.parametrize("query", ["?by=nonsense&since=nonsense", "?by=tag:x", "?since=", f"?by={HOSTILE}"])
async def test_nonsense_in_the_address_is_the_usual_page(house, admin, query):
    await house.ledger.write(record("r1"))
    answer = await admin.get(f"/spend{query}")
    assert (answer.status_code, "<img" in answer.text) == (200, False)


async def test_a_key_sees_its_own_spending_only(house, admin, user):
    keys = {key.name: key.id for key in await house.keys.list()}
    await house.ledger.write(record("req-boss", key_id=keys["boss"], cost=Decimal("3.17"), team_id="secret-team"))
    await house.ledger.write(record("req-worker", key_id=keys["worker"], cost=Decimal("4.19")))
    for by in ("model", "key", "team", "user", "provider"):
        page = (await user.get(f"/spend?by={by}")).text
        assert "$4.19" in page
        assert "$3.17" not in page
        assert "$7.36" not in page
        assert "boss" not in page
        assert "secret-team" not in page
    assert "$7.36" in (await admin.get("/spend?by=key")).text


async def test_what_a_request_says_of_itself_is_text(house, admin):
    asked = whole(text=HOSTILE, user=HOSTILE, model=HOSTILE)
    await write_with_body(house.ledger, asked, HOSTILE, HOSTILE, wrapper_of(house.gateway.config, create=True))
    groups = ("model", "deployment", "provider", "team", "user", "feature")
    for path in ("/requests/req-1", "/requests", *(f"/spend?by={by}" for by in groups)):
        page = (await admin.get(path)).text
        assert "<img" not in page, path
        assert "<script>" not in page, path
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=\"", page), path


async def test_a_request_shows_its_way_its_words_and_its_body(house, admin, user):
    keys = {key.name: key.id for key in await house.keys.list()}
    asked = whole(key_id=keys["boss"])
    await write_with_body(house.ledger, asked, '{"q": 1}', "[]", wrapper_of(house.gateway.config, create=True))
    assert 'data-testid="request-body"' not in (await admin.get("/requests/req-1")).text
    page = (await admin.get("/requests/req-1?said=1")).text
    for text in ("2. farplain", "because plain", "attempt 1: nearplain", "featureplain", "{&#34;q&#34;: 1}"):
        assert text in page, text
    assert 'data-testid="request-body"' in page
    assert [(one.actor, one.subject) for one in await house.gateway.audit.entries(action="body.read")] == [
        (keys["boss"], "req-1")
    ]
    assert (await user.get("/requests/req-1?said=1")).status_code == 404
    await house.ledger.write(record("req-2"))
    assert 'data-testid="request-body"' not in (await admin.get("/requests/req-2")).text


async def test_a_body_that_does_not_open_leaves_the_rest_of_the_page(house, admin):
    wrapper = some_master_key()
    await write_with_body(house.ledger, whole(), "said", "[]", wrapper)
    wrapper_of(house.gateway.config, create=True)()
    page = (await admin.get("/requests/req-1?said=1")).text
    assert "what req-1 said: the master key does not open it" in page
    assert "attempt 1: near" in page
    assert 'data-testid="request-body"' not in page


async def test_what_a_resolved_conversation_cost_is_told_where_any_was(house, admin):
    await house.ledger.write(record("r1", tags={"conversation": "1"}))
    assert "A resolved conversation" not in (await admin.get("/spend")).text
    await house.ledger.write(record("r2", tags={"conversation": "2"}))
    await house.gateway.telemetry.signals.note("resolved", subject="1")
    page = (await admin.get("/spend")).text
    assert "$0.50; 1.0 of 2 were" in page


async def test_requests_are_filtered_by_how_they_were_answered(house, admin):
    await house.ledger.write(whole("req-retried"))
    await house.ledger.write(record("req-cached", cache="semantic"))
    await house.ledger.write(record("req-unknown", priced=False))
    for way in ("retried", "cached", "unknown"):
        page = (await admin.get(f"/requests?way={'unpriced' if way == 'unknown' else way}")).text
        assert re.findall(r'data-request-id="([^"]*)"', page) == [f"req-{way}"]
    assert len(re.findall(r'data-request-id="', (await admin.get("/requests?way=nonsense")).text)) == 3


async def test_many_groups_become_a_few_and_others(house):
    site = Site(None, house.ledger, None)  # type: ignore[arg-type]
    for n in range(12):
        await house.ledger.write(
            record(f"r{n}", model=f"m{n:02}", cost=Decimal(n + 1), started_at=NOW - timedelta(hours=n))
        )
    found = await spending(site, timedelta(days=7), "model", None, NOW)
    assert [one.name for one in found.chart.series] == [*(f"m{n:02}" for n in range(11, 5, -1)), "others"]
    assert len(found.chart.series) == MAX_SERIES + 1
    assert sum(one.total for one in found.chart.series) == found.total.cost == 78
    assert [name for name in found.chart.labels if name] == [f"2026-05-{day:02}" for day in range(2, 9)]


async def test_a_day_in_hours(house):
    site = Site(None, house.ledger, None)  # type: ignore[arg-type]
    await house.ledger.write(record("now", started_at=NOW))
    await house.ledger.write(record("first", started_at=NOW.replace(day=7, hour=16, minute=0)))
    await house.ledger.write(record("before", started_at=NOW.replace(day=7, hour=15, minute=59)))
    found = await spending(site, timedelta(hours=24), "model", None, NOW)
    assert found.total.requests == 2
    assert [bar.bucket for bar in found.chart.bars] == ["2026-05-07T16:00Z", "2026-05-08T15:00Z"]


amounts = st.decimals(0, 10**6, places=6)


@given(
    st.integers(1, 40).flatmap(lambda n: st.lists(st.lists(amounts, min_size=n, max_size=n), min_size=1, max_size=5))
)
def test_bars_stand_on_each_other_inside_the_drawing(table: list[list[Decimal]]) -> None:
    buckets = [str(n) for n in range(len(table[0]))]
    chart = stacked_bars(buckets, [Series(str(n), tuple(row)) for n, row in enumerate(table)])
    ceiling = chart.ticks[-1][0]
    for bucket in buckets:
        foot = HEIGHT
        for bar in (bar for bar in chart.bars if bar.bucket == bucket):
            assert bar.y == pytest.approx(foot - float(bar.value / ceiling) * HEIGHT, abs=0.02)
            foot -= float(bar.value / ceiling) * HEIGHT
        assert foot >= -0.02
    assert all(0 <= bar.x <= bar.x + bar.width <= WIDTH for bar in chart.bars)
    assert len(chart.labels) == len(buckets)


@given(st.decimals("0.000000000001", 10**9, allow_nan=False))
def test_a_scale_is_just_above_what_it_shows(value: Decimal) -> None:
    assert value <= nice_ceiling(value) <= 2 * value


def test_a_way_lies_inside_its_time() -> None:
    found = tracks(whole())
    assert [track.name for track in found] == ["holdplain", "open", "1. nearplain", "2. farplain"]
    assert [piece.kind for piece in found[3].pieces] == ["wait", "generate"]
    assert (found[3].pieces[0].x, found[3].pieces[1].x) == (400, 600)
    for track in found:
        assert all(piece.x >= 0 and piece.x + piece.width <= 1002 for piece in track.pieces)
    assert tracks(record("r1", duration=0.0)) == []


def test_limits_are_words() -> None:
    limits = Limits(requests_per_minute=1200, budget_usd=Decimal(5), budget_period="monthly")
    assert formats.limits(limits) == "1,200 requests/min, $5.00 monthly"
    assert formats.limits(Limits(budget_usd=Decimal("0.5"), budget_period="never")) == "$0.50 in all"
    assert formats.limits(Limits()) == "No limit"


def test_amounts_are_rounded_where_there_is_no_room() -> None:
    assert [cents(Decimal(d)) for d in ("0", "1234.567", "0.00123456", "0.1", "0.000000000001")] == [
        "$0.00", "$1,234.57", "$0.00123", "$0.1", "$0.000000000001",
    ]  # fmt: skip
    assert [share(*parts) for parts in ((0, 0), (3, 4), (1, 1000), (0, 5))] == ["–", "75%", "0.1%", "0%"]
