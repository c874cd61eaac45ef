"""Signing in through an identity provider: with one that we did not write, and against one that lies."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from console_house import Browser, House, build_house
from fresh_database import fresh_sqlite
from identity_provider import IdentityProvider
from joserfc.jwk import RSAKey
from oidc_provider_mock import User, run_server_in_thread
from sqlalchemy import text

from wootz.console.sessions import COOKIE
from wootz.core import AuthenticationError, Config, UnavailableError
from wootz.core.sections import OidcConfig
from wootz.gateway.identity.oidc import CALLBACK, Oidc
from wootz.gateway.identity.people import People
from wootz.store import Database

GROUPS = {"llm-admins": ["admin"], "llm-readers": ["viewer"], "audit": ["auditor"]}
CONSOLE = "http://localhost"


def config_of(issuer: str, **more: Any) -> Config:
    oidc = {"issuer": issuer, "client_id": "wootz", "console_url": CONSOLE, **more}
    return Config.model_validate({"identity": {"oidc": oidc, "groups": GROUPS}})


@pytest.fixture(scope="module")
def provider_server() -> Iterator[IdentityProvider]:
    with IdentityProvider() as provider:
        yield provider


@pytest.fixture
def provider(provider_server: IdentityProvider) -> IdentityProvider:
    url = provider_server.url
    provider_server.claims = {"sub": "u-1", "email": "ann@example.com", "email_verified": True}
    provider_server.header, provider_server.unsigned, provider_server.signed_by = {}, False, None
    provider_server.secret = b""
    provider_server.url = url
    return provider_server


@pytest.fixture
async def house(provider: IdentityProvider, tmp_path: Path) -> AsyncIterator[House]:
    house = await build_house(tmp_path, config=config_of(provider.url))
    yield house
    await house.close()


@pytest.fixture
async def oidc(provider: IdentityProvider, tmp_path: Path) -> AsyncIterator[Oidc]:
    config = config_of(provider.url).identity.oidc
    assert config is not None
    database = Database(fresh_sqlite(tmp_path / "wootz.db"))
    yield Oidc(config, database)
    await database.close()


def visitor(house: House) -> Browser:
    return Browser(house.app, base_url=CONSOLE)


async def sign_in(browser: Browser, provider: IdentityProvider, next: str = "/models") -> httpx.Response:
    leaving = await browser.get("/login/oidc", params={"next": next})
    assert leaving.status_code == 303
    back = provider.come_back(leaving.headers["location"])
    return await browser.get(back)


async def test_a_provider_that_we_did_not_write_signs_somebody_in_by_their_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OIDC_SECRET", "only the provider and we know it")
    claims = {"email": "ann@example.com", "email_verified": True, "groups": ["audit", "unknown to us"]}
    with run_server_in_thread(require_nonce=True, user_claims=[User(sub="ann", claims=claims)]) as server:
        issuer = f"http://localhost:{server.server_port}"
        house = await build_house(tmp_path, config=config_of(issuer, client_secret="env:OIDC_SECRET"))
        async with visitor(house) as browser, httpx.AsyncClient() as outside:
            leaving = await browser.get("/login/oidc", params={"next": "/audit"})
            consent = await outside.post(leaving.headers["location"], data={"sub": "ann"})
            landed = await browser.get(consent.headers["location"])
            assert (landed.status_code, landed.headers["location"]) == (303, "/audit")
            page = await browser.get("/audit")
            assert page.status_code == 200
            assert "session.opened" in page.text
            assert (await browser.get("/users")).status_code == 200
            assert (await browser.get("/keys")).status_code == 403
            assert (await browser.chat("hello")).status_code == 403  # An auditor asks nothing.
        await house.close()


async def test_a_person_keeps_their_account_when_their_address_changes(
    house: House, provider: IdentityProvider
) -> None:
    provider.claims["groups"] = ["llm-readers"]
    async with visitor(house) as browser:
        assert (await sign_in(browser, provider)).headers["location"] == "/models"
        provider.claims["email"] = "ann@married.example"
        assert (await sign_in(browser, provider)).status_code == 303
    assert [account.name for account in await house.keys.list_accounts("user")] == ["ann@example.com"]


async def test_nobody_takes_over_a_name_that_is_another_subjects(house: House, provider: IdentityProvider) -> None:
    provider.claims["groups"] = ["llm-admins"]
    async with visitor(house) as browser:
        await sign_in(browser, provider)
    provider.claims["sub"] = "somebody-else"
    async with visitor(house) as browser:
        refused = await sign_in(browser, provider)
        assert refused.status_code == 400
        assert COOKIE not in browser.cookies


@pytest.mark.parametrize(
    "claims",
    [
        {"groups": []},
        {"groups": None},
        {"groups": "llm-admins"},
        {"groups": [["llm-admins"]]},
        {"groups": ["LLM-ADMINS"]},
    ],
)
async def test_without_a_role_there_is_no_session(house: House, provider: IdentityProvider, claims: Any) -> None:
    provider.claims |= claims
    async with visitor(house) as browser:
        assert (await sign_in(browser, provider)).status_code == 403
        assert COOKIE not in browser.cookies
    (refused,) = await house.gateway.audit.entries(action="session.refused")
    assert refused.detail["method"] == "oidc"
    assert "ann@" not in str(refused)


async def test_roles_that_are_gone_at_the_next_sign_in_are_gone_in_other_sessions_too(
    house: House, provider: IdentityProvider
) -> None:
    provider.claims["groups"] = ["llm-admins"]
    async with visitor(house) as before, visitor(house) as after:
        await sign_in(before, provider)
        assert (await before.get("/keys")).status_code == 200
        provider.claims["groups"] = ["llm-readers"]
        await sign_in(after, provider)
        assert (await before.get("/keys")).status_code == 403


async def test_what_a_sign_in_changes_is_in_the_audit_log(house: House, provider: IdentityProvider) -> None:
    ann = await People(house.keys, house.gateway.config.identity).create("ann@example.com")
    told = []
    for group in ("llm-admins", "llm-admins", "llm-readers"):
        provider.claims["groups"] = [group]
        async with visitor(house) as browser:
            await sign_in(browser, provider)
        told.append(await house.gateway.audit.entries(action="user.changed", subject=ann.id))
    (bound,), again, (changed, _) = told
    by = {"by": "sign-in", "keys_ended": 0, "sessions_ended": 0}
    assert bound.detail == by | {"bound": True, "gained": ["admin"], "lost": []}
    assert again == [bound]
    assert changed.detail == by | {"bound": False, "gained": ["viewer"], "lost": ["admin"]}
    provider.claims |= {"sub": "u-2", "email": "ben@example.com"}
    async with visitor(house) as browser:
        await sign_in(browser, provider)
    (created,) = await house.gateway.audit.entries(action="user.created")
    assert (created.detail["by"], created.detail["gained"]) == ("sign-in", ["viewer"])


async def test_where_it_leads_is_never_another_site(house: House, provider: IdentityProvider) -> None:
    provider.claims["groups"] = ["llm-admins"]
    for target in ("//evil.test/", "https://evil.test/", "/\\evil.test", "/\t/evil.test"):
        async with visitor(house) as browser:
            assert (await sign_in(browser, provider, target)).headers["location"] == "/"


async def test_another_browser_cannot_finish_a_sign_in_and_a_second_time_nobody_can(
    house: House, provider: IdentityProvider
) -> None:
    """Login CSRF: the attacker begins, the victim's browser is sent the callback. And a callback that was seen."""
    provider.claims["groups"] = ["llm-admins"]
    async with visitor(house) as attacker, visitor(house) as victim:
        leaving = await attacker.get("/login/oidc")
        back = provider.come_back(leaving.headers["location"])
        assert (await victim.get(back)).status_code == 401
        assert (await attacker.get(back)).status_code == 401  # It was taken out.
        leaving = await attacker.get("/login/oidc")
        back = provider.come_back(leaving.headers["location"])
        cookie = attacker.cookies["wootz_sign_in"]
        assert (await attacker.get(back)).status_code == 303
        attacker.cookies.set("wootz_sign_in", cookie)
        assert (await attacker.get(back)).status_code == 401
    assert len(await house.gateway.audit.entries(action="session.refused")) == 3


async def finish(oidc: Oidc, provider: IdentityProvider, **changed: Any):
    address, browser = await oidc.begin("/")
    brought = provider.authorize(address)
    asked = {"state": brought["state"], "code": brought["code"], "issuer": brought["iss"], "browser": browser}
    return await oidc.finish(**asked | changed)


async def test_an_honest_token_passes(oidc: Oidc, provider: IdentityProvider) -> None:
    claims, next = await finish(oidc, provider)
    assert (claims.name, claims.subject, next) == ("ann@example.com", f"{provider.url}|u-1", "/")


async def test_refused_callbacks_lock_nobody_with_a_key_out(house: House) -> None:
    key = await house.key("ann")
    async with visitor(house) as browser:
        answers = [(await browser.get(CALLBACK, params={"state": "x", "code": "x"})).status_code for _ in range(12)]
        assert answers == [401] * 10 + [429] * 2
        assert (await browser.sign_in(key)).status_code == 303


async def test_cookies_are_for_https_where_the_console_is(provider: IdentityProvider, tmp_path: Path) -> None:
    """Also where what ends TLS in front does not say so."""
    config = config_of(provider.url, console_url="https://llm.test")
    house = await build_house(tmp_path, config=config)
    async with visitor(house) as browser:
        leaving = await browser.get("/login/oidc")
        signed_in = await browser.sign_in(await house.key("ann"))
        for answer in (leaving, signed_in):
            assert "; secure" in answer.headers["set-cookie"].lower()
    await house.close()


@pytest.mark.parametrize("configured", ["", "/"])
async def test_an_issuer_may_end_in_a_slash_and_then_tokens_must(
    provider: IdentityProvider, database: Database, configured: str
) -> None:
    """As Auth0's does. The person is the same with and without it."""
    config = config_of(provider.url + configured).identity.oidc
    assert config is not None
    provider.slash, oidc = "/", Oidc(config, database)
    claims, _ = await finish(oidc, provider)
    assert claims.subject == f"{provider.url}|u-1"
    provider.claims["iss"] = provider.url
    with pytest.raises(AuthenticationError, match="issuer"):
        await finish(oidc, provider)
    with pytest.raises(AuthenticationError, match="another identity provider"):
        await finish(oidc, provider, issuer=provider.url)


@pytest.mark.parametrize("more", ["//", "/tenant", "x", None])
async def test_a_provider_of_another_name_is_not_asked(
    oidc: Oidc, provider: IdentityProvider, more: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(IdentityProvider, "issuer", more and provider.url + more)
    with pytest.raises(UnavailableError):
        await oidc.begin("/")


NOW = int(time.time())
LIES: dict[str, dict[str, Any]] = {
    "another sign-in's nonce": {"nonce": "other"},
    "no nonce": {"nonce": None},
    "another issuer": {"iss": "https://evil.test"},
    "another audience": {"aud": "another-client"},
    "no audience": {"aud": None},
    "several audiences, none authorized": {"aud": ["wootz", "another-client"]},
    "another authorized party": {"azp": "another-client"},
    "expired": {"exp": NOW - 3600},
    "no end": {"exp": None},
    "a text as its end": {"exp": "tomorrow"},
    "no beginning": {"iat": None},
    "from the future": {"iat": NOW + 3600},
    "not yet": {"nbf": NOW + 3600},
    "no subject": {"sub": None},
    "an address that nobody verified": {"email_verified": False},
    "an address verified in words": {"email_verified": "true"},
    "no name": {"email": None},
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_token_that_lies_is_refused(oidc: Oidc, provider: IdentityProvider, lie: str) -> None:
    provider.claims |= LIES[lie]
    with pytest.raises(AuthenticationError):
        await finish(oidc, provider)


async def test_a_clock_may_be_off_by_the_leeway_and_no_more(oidc: Oidc, provider: IdentityProvider) -> None:
    provider.claims |= {"exp": int(time.time()) - 30}
    await finish(oidc, provider)
    provider.claims |= {"exp": int(time.time()) - 90}
    with pytest.raises(AuthenticationError, match="over"):
        await finish(oidc, provider)


def _none(provider: IdentityProvider) -> None:
    provider.unsigned, provider.header = True, {"alg": "none"}


def _none_in_capitals(provider: IdentityProvider) -> None:
    provider.unsigned, provider.header = True, {"alg": "nOnE"}


def _without_signature(provider: IdentityProvider) -> None:
    provider.unsigned = True


def _public_key_as_secret(provider: IdentityProvider) -> None:
    """Algorithm confusion: the public key, which everybody has, as the secret of an HMAC."""
    provider.header, provider.secret = {"alg": "HS256"}, provider.keys[0].as_pem(private=False)


def _own_key(provider: IdentityProvider) -> None:
    provider.signed_by = RSAKey.generate_key(2048)


def _own_key_in_the_header(provider: IdentityProvider) -> None:
    key = RSAKey.generate_key(2048)
    provider.signed_by, provider.header = key, {"jwk": key.as_dict(private=False)}


def _unknown_key(provider: IdentityProvider) -> None:
    provider.signed_by, provider.header = RSAKey.generate_key(2048), {"kid": "unknown"}


@pytest.mark.parametrize(
    "forge",
    [
        _none, _none_in_capitals, _without_signature, _public_key_as_secret, _own_key, _own_key_in_the_header,
        _unknown_key,
    ],
)  # fmt: skip
async def test_a_forged_signature_is_refused(
    oidc: Oidc, provider: IdentityProvider, forge: Callable[[IdentityProvider], None]
) -> None:
    forge(provider)
    with pytest.raises(AuthenticationError):
        await finish(oidc, provider)


async def test_keys_that_were_rotated_are_fetched_but_strangers_make_us_fetch_none(
    oidc: Oidc, provider: IdentityProvider
) -> None:
    clock = [0.0]
    oidc._clock = lambda: clock[0]
    await finish(oidc, provider)
    clock[0] = 20.0
    provider.rotate()
    await finish(oidc, provider)
    fetched = provider.num_key_requests
    _unknown_key(provider)
    for _ in range(3):
        with pytest.raises(AuthenticationError):
            await finish(oidc, provider)
    assert provider.num_key_requests == fetched


async def test_a_code_is_worth_nothing_elsewhere(oidc: Oidc, provider: IdentityProvider) -> None:
    """A code that was redeemed, one of another sign-in (PKCE), a wrong state, a stranger's cookie, another issuer."""
    address, browser = await oidc.begin("/")
    brought = provider.authorize(address)
    await oidc.finish(state=brought["state"], browser=browser, code=brought["code"], issuer=None)
    with pytest.raises(AuthenticationError):
        await finish(oidc, provider, code=brought["code"])
    stolen = provider.authorize((await oidc.begin("/"))[0])["code"]
    with pytest.raises(AuthenticationError):
        await finish(oidc, provider, code=stolen)
    for changed in ({"state": "guessed"}, {"browser": "other"}, {"issuer": "https://evil.test"}):
        with pytest.raises(AuthenticationError):
            await finish(oidc, provider, **changed)


async def test_a_sign_in_is_over_after_ten_minutes(oidc: Oidc, provider: IdentityProvider) -> None:
    address, browser = await oidc.begin("/")
    brought = provider.authorize(address)
    oidc._wall = lambda: time.time() + 601
    with pytest.raises(AuthenticationError, match="over"):
        await oidc.finish(state=brought["state"], browser=browser, code=brought["code"], issuer=None)


async def test_the_database_holds_no_state_and_no_cookie(oidc: Oidc) -> None:
    address, browser = await oidc.begin("/")
    state = parse_qs(urlsplit(address).query)["state"][0]
    async with oidc._database.session() as sql:
        rows = str((await sql.execute(text("select state_hash, browser_hash from sign_ins"))).all())
    assert state not in rows
    assert browser not in rows


async def test_the_master_key_still_opens_the_console_and_the_audit_log_tells(tmp_path: Path) -> None:
    """Break-glass: the identity provider is down."""
    house = await build_house(tmp_path, config=config_of("http://localhost:9"))
    await house.keys.set_master("m" * 40)
    async with visitor(house) as browser:
        assert (await browser.get("/login/oidc")).status_code == 503
        assert (await browser.sign_in("m" * 40)).status_code == 303
        assert (await browser.get("/audit")).status_code == 200
    (opened,) = await house.gateway.audit.entries(action="session.opened")
    assert (opened.actor, opened.detail["method"]) == ("master", "master key")
    await house.close()


@pytest.mark.parametrize("field", ["issuer", "console_url"])
def test_plain_http_is_for_this_machine_only(field: str) -> None:
    good = {"issuer": "https://idp.test", "client_id": "wootz", "console_url": "https://llm.test"}
    OidcConfig.model_validate(good | {field: "http://localhost:8080"})
    OidcConfig.model_validate(good | {field: "http://[::1]/realm"})
    wrong_hosts = (
        "http://idp.test",
        "http://localhost.evil.test",
        "http://127.0.0.1.evil.test:80",
        "http://localhost:x",
    )
    for bad in (
        *wrong_hosts,
        "ftp://localhost",
        "localhost:8080",
        "localhost",
        "https://",
        "http://localhost:8@evil.test",
    ):
        with pytest.raises(ValueError, match="https"):
            OidcConfig.model_validate(good | {field: bad})
