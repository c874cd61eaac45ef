"""Signing in and out, what the cookie is, and what ends a session."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from console_house import Browser
from sqlalchemy import text, update

from wootz.console.sessions import COOKIE
from wootz.gateway.identity.sessions import SessionRow


async def test_a_key_opens_a_session_and_the_page_that_was_wanted(house, browser):
    key = await house.key("ann")
    async with browser() as visitor:
        turned_away = await visitor.get("/requests?q=a&model=b")
        assert turned_away.status_code == 303
        assert turned_away.headers["location"] == "/login?next=%2Frequests%3Fq%3Da%26model%3Db"
        form = await visitor.get(turned_away.headers["location"])
        assert 'value="/requests?q=a&amp;model=b"' in form.text
        signed_in = await visitor.post("/login", data={"key": f" {key}\n", "next": "/requests?q=a&model=b"})
        assert (signed_in.status_code, signed_in.headers["location"]) == (303, "/requests?q=a&model=b")
        assert (await visitor.get("/requests")).status_code == 200


@pytest.mark.parametrize(("base_url", "is_secure"), [("http://console.test", False), ("https://console.test", True)])
async def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(house, browser, base_url, is_secure):
    async with browser(base_url=base_url) as visitor:
        cookie = (await visitor.sign_in(await house.key("ann"))).headers["set-cookie"]
    attributes = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert {"httponly", "samesite=lax", "path=/"} <= attributes
    assert ("secure" in attributes) == is_secure
    assert len(cookie.partition("=")[2].partition(";")[0]) >= 43, "256 random bits"


async def test_the_database_holds_neither_the_cookie_nor_the_key(house, browser, tmp_path):
    key = await house.key("ann")
    async with browser() as visitor:
        await visitor.sign_in(key)
        cookie = visitor.cookies[COOKIE]
        await visitor.get("/models")
    await house.database.close()
    stored = b"".join(file.read_bytes() for file in tmp_path.glob("wootz.db*"))
    assert b"ann" in stored
    assert cookie.encode() not in stored
    assert key.encode() not in stored


async def test_an_unknown_key_is_refused_in_the_form_and_not_repeated(house, browser):
    async with browser() as visitor:
        answer = await visitor.sign_in("sk-wootz-guessed")
        assert answer.status_code == 401
        assert 'data-testid="login-error"' in answer.text
        assert "sk-wootz-guessed" not in answer.text
        assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "target",
    ["//evil.test/", "https://evil.test/", "/\\evil.test", "/\t/evil.test", "\\\\evil.test", "javascript:alert(1)"],
)
async def test_signing_in_never_leads_to_another_site(house, browser, target):
    async with browser() as visitor:
        answer = await visitor.post("/login", data={"key": await house.key("ann"), "next": target})
        assert answer.headers["location"] == "/"


async def test_signing_out_ends_the_session_on_the_server(house, admin):
    cookie = admin.cookies[COOKIE]
    assert (await admin.submit("/logout")).headers["location"] == "/login"
    admin.cookies.set(COOKIE, cookie)
    assert (await admin.get("/models")).status_code == 303


async def test_a_revoked_key_ends_its_sessions(house, user):
    assert (await user.get("/models")).status_code == 200
    await house.keys.revoke("worker")
    assert (await user.get("/models")).status_code == 303
    assert (await user.chat("hello", csrf_token="any")).status_code == 401
    assert house.model.requests == []


async def test_an_expired_key_ends_its_sessions(house, browser):
    async with browser() as visitor:
        await visitor.sign_in(await house.key("brief", expires_at=datetime.now(UTC) + timedelta(hours=1)))
        assert (await visitor.get("/models")).status_code == 200
        async with house.database.session() as sql:
            await sql.execute(text("UPDATE keys SET expires_at = '2020-01-01 00:00:00'"))
        assert (await visitor.get("/models")).status_code == 303


async def test_a_session_ends_by_itself_and_is_swept_out(house, user, browser):
    async with house.database.session() as sql:
        await sql.execute(update(SessionRow).values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    assert (await user.get("/models")).status_code == 303
    async with browser() as visitor:
        await visitor.sign_in(await house.key("next"))
    async with house.database.session() as sql:
        assert (await sql.execute(text("SELECT count(*) FROM sessions"))).scalar_one() == 1


async def test_guessing_is_throttled_per_address(house, browser):
    key = await house.key("ann")
    async with browser() as guesser:
        refused = [(await guesser.sign_in(f"sk-wootz-{n}")).status_code for n in range(12)]
        assert refused == [401] * 10 + [429] * 2
        locked_out = await guesser.sign_in(key)
        assert locked_out.status_code == 429
        assert int(locked_out.headers["retry-after"]) > 200
    async with browser(address="10.0.0.2") as other:
        assert (await other.sign_in(key)).status_code == 303


async def test_another_site_cannot_sign_anybody_in(house, browser):
    key = await house.key("ann")
    async with browser() as visitor:
        answer = await visitor.post("/login", data={"key": key}, headers={"Origin": "http://evil.test"})
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers


async def test_without_accounts_there_is_nothing_to_sign_in_to(open_house):
    async with Browser(open_house.app) as visitor:
        for path in ("/chat", "/models", "/requests"):
            page = await visitor.get(path)
            assert page.status_code == 200
            assert 'data-testid="nav-keys"' not in page.text
        assert (await visitor.get("/keys")).status_code == 404
        assert (await visitor.get("/login")).status_code == 404
        assert '"content":"Steel "' in (await visitor.chat("hello")).text
