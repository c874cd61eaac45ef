"""What the pages show, to whom, and that nothing on them is more than text."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from wootz.console.formats import seconds, short, usd
from wootz.telemetry import RequestRecord

HOSTILE = """<img src=x onerror="alert(1)">'\"</script><script>alert(2)</script>"""


def record(request_id: str, **fields) -> RequestRecord:
    defaults = {
        "started_at": datetime.now(UTC),
        "route": "/v1/chat/completions",
        "key_id": None,
        "model": "scripted",
        "provider": "script",
        "stream": True,
        "status": 200,
    }
    return RequestRecord(request_id=request_id, **(defaults | fields))


def rows(page: str) -> list[str]:
    return re.findall(r'data-testid="request-row" data-request-id="([^"]*)"', page)


@pytest.mark.parametrize(
    "path", ["/login", "/chat", "/models", "/keys", "/requests", "/requests/nothing", "/spend", "/static/console.css"]
)
async def test_every_answer_forbids_inline_and_foreign_code(admin, path):
    answer = await admin.get(path)
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    if answer.headers["content-type"].startswith("text/html"):
        assert answer.headers["cache-control"] == "no-store"
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:|https?://", answer.text)


async def test_pages_need_nothing_from_elsewhere(admin):
    """The console works offline: each file that a page or a script names is here."""
    seen, todo = set(), ["/login", "/chat", "/models", "/keys", "/requests", "/spend", "/caches"]
    while todo:
        path = todo.pop()
        answer = await admin.get(path)
        assert answer.status_code == 200, path
        seen.add(path)
        if "/vendor/" in path:
            continue
        named = re.findall(r'(?:src|href)="(/static/[^"#]+)', answer.text)
        named += [
            f"/static/{name}" for name in re.findall(r'(?:from|import|url\()\s*"(?:\./)?([\w./-]+)"', answer.text)
        ]
        todo += [name for name in named if name not in seen]
    assert {"/static/chat.js", "/static/vendor/marked.esm.js", "/static/vendor/purify.min.js"} <= seen


async def test_where_nothing_is_a_person_gets_a_page_and_a_script_the_apis_json(user):
    page = await user.get("/chatt")
    assert (page.status_code, page.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "nothing is served at /chatt" in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]
    answer = await user.post("/v1/nothing", headers={"Accept": "*/*"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")
    assert (await user.get("/console/chat")).status_code == 405


@pytest.mark.parametrize("name", ["../routes.py", "..%2froutes.py", "%2e%2e/routes.py", "/etc/passwd", "vendor", ""])
async def test_static_serves_only_its_own_files(user, name):
    assert (await user.get(f"/static/{name}")).status_code == 404


async def test_hostile_names_and_fields_are_text(house, admin):
    await house.keys.create(HOSTILE[:100])
    fields = {"model": HOSTILE, "user": HOSTILE, "error_code": HOSTILE, "finish_reason": HOSTILE, "route": HOSTILE}
    await house.ledger.write(record("req-hostile", **fields))
    for path in ("/keys", "/requests", "/requests/req-hostile", f"/requests?q={HOSTILE}&model={HOSTILE}"):
        page = (await admin.get(path)).text
        assert "&lt;img src=x" in page, path
        assert "<img" not in page, path
        assert "<script>" not in page, path
    form = await admin.get(f"/login?next={HOSTILE}")
    assert "<img" not in form.text
    refused = await admin.submit("/keys", name=HOSTILE, scopes="nothing")
    assert "<img" not in refused.text


async def test_a_hostile_model_name_is_text_in_the_chat(house, admin):
    house.models[HOSTILE] = house.models["other"]
    for path in ("/chat", "/models", "/keys", "/requests"):
        page = (await admin.get(path)).text
        assert "&lt;img src=x" in page, path
        assert "<img" not in page, path


async def test_a_key_sees_its_own_requests_only(house, admin, user):
    keys = {key.name: key.id for key in await house.keys.list()}
    await house.ledger.write(record("req-boss", key_id=keys["boss"]))
    await house.ledger.write(record("req-worker", key_id=keys["worker"]))
    await house.ledger.write(record("req-nobody"))
    assert set(rows((await admin.get("/requests")).text)) == {"req-boss", "req-worker", "req-nobody"}
    assert rows((await admin.get(f"/requests?key={keys['boss']}")).text) == ["req-boss"]
    for path in ("/requests", f"/requests?key={keys['boss']}", "/requests?q=req"):
        page = (await user.get(path)).text
        assert rows(page) == ["req-worker"]
        assert "boss" not in page
    assert (await user.get("/requests/req-worker")).status_code == 200
    assert (await user.get("/requests/req-boss")).status_code == 404
    assert (await user.get("/requests/req-nobody")).status_code == 404
    assert (await admin.get("/requests/req-boss")).status_code == 200


async def test_requests_are_filtered(house, admin):
    now = datetime.now(UTC)
    await house.ledger.write(record("req-ok", model="other"))
    await house.ledger.write(record("req-limited", status=429, error_code="rate_limit_exceeded"))
    await house.ledger.write(record("req-broken", status=503, started_at=now - timedelta(hours=3)))
    for query, expected in {
        "": {"req-ok", "req-limited", "req-broken"},
        "?model=other": {"req-ok"},
        "?status=ok": {"req-ok"},
        "?status=refused": {"req-limited"},
        "?status=failed": {"req-broken"},
        "?since=1h": {"req-ok", "req-limited"},
        "?q=LIMIT": {"req-limited"},
        "?q=%25": set(),
        "?status=nonsense&since=nonsense": {"req-ok", "req-limited", "req-broken"},
    }.items():
        assert set(rows((await admin.get(f"/requests{query}")).text)) == expected, query


async def test_pages_of_requests_lose_and_repeat_nothing(house, admin):
    now = datetime.now(UTC)
    for n in range(120):
        await house.ledger.write(record(f"req-{n:03}", started_at=now - timedelta(seconds=n // 7), model="other"))
    await house.ledger.write(record("req-elsewhere"))
    found, path = [], "/requests?model=other"
    while path:
        page = (await admin.get(path)).text
        found += rows(page)
        older = re.search(r'href="([^"]+)" data-testid="requests-older"', page)
        path = older[1].replace("&amp;", "&") if older else None
    assert len(found) == 120
    assert set(found) == {f"req-{n:03}" for n in range(120)}


async def test_a_request_shows_its_whole_record(house, admin):
    await house.ledger.write(
        record(
            "req-1",
            prompt_tokens=1234,
            cached_tokens=1000,
            completion_tokens=56,
            cost=Decimal("0.00001230"),
            time_to_first_token=0.25,
            inter_token_latency=0.02,
            duration=1.25,
            finish_reason="length",
            user="ann",
        )
    )
    page = (await admin.get("/requests/req-1")).text
    for text in ("1,234", "1,000", "56", "$0.0000123", "250 ms", "20.0 ms", "1.25 s", "length", "ann", "50.0 tok/s"):
        assert text in page, text
    assert '<rect class="wait" x="0" y="0" width="200.0"' in page
    assert '<rect class="generate" x="200.0" y="0" width="800.0"' in page


async def test_a_request_without_any_token_has_a_timeline_too(house, admin):
    await house.ledger.write(record("req-refused", status=429, error_code="rate_limit_exceeded"))
    page = (await admin.get("/requests/req-refused")).text
    assert '<rect class="failed"' in page


async def test_a_key_sees_its_own_models_only(house, browser):
    async with browser() as visitor:
        await visitor.sign_in(await house.key("narrow", models=["other"]))
        for path in ("/models", "/chat", "/requests"):
            page = (await visitor.get(path)).text
            assert "other" in page
            assert "scripted" not in page


def test_numbers_are_short_and_exact():
    assert [short(n) for n in (7, 134_515_008, 7_000_000_000)] == ["7", "135M", "7B"]
    assert [seconds(s) for s in (None, 0.0123, 0.25, 1.5, 250.0)] == ["–", "12.3 ms", "250 ms", "1.50 s", "250 s"]
    assert [usd(Decimal(d)) for d in ("0", "1.5", "0.000000000001")] == ["$0.00", "$1.50", "$0.000000000001"]
