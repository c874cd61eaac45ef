"""Roles: every admin route and every page names its permission, and nobody without it gets in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from console_house import Browser, House
from kept_bodies import write_with_body

from wootz.core.sections import IdentityConfig
from wootz.gateway.identity.roles import ROLE_NAMES, ROLES, permissions
from wootz.gateway.identity.sessions import Sessions
from wootz.store.secrets import wrapper_of
from wootz.telemetry import RequestRecord

PAGES = {
    "/chat": "inference", "/keys": "accounts", "/users": "people", "/caches": "operate", "/runs": "operate",
    "/audit": "audit",
}  # fmt: skip
ROUTES = {
    ("GET", "/admin/keys"): "accounts", ("POST", "/admin/keys"): "accounts", ("DELETE", "/admin/keys/x"): "accounts",
    ("GET", "/admin/teams"): "accounts", ("GET", "/admin/limits"): "costs", ("GET", "/admin/routes"): "operate",
    ("GET", "/admin/caches"): "operate", ("DELETE", "/admin/caches"): "operate", ("GET", "/admin/audit"): "audit",
    ("GET", "/admin/audit/head"): "audit", ("POST", "/admin/audit/verify"): "audit",
    ("GET", "/admin/audit/export"): "audit", ("GET", "/admin/people"): "people", ("GET", "/admin/sessions"): "people",
    ("PUT", "/admin/people/x/roles"): "accounts", ("POST", "/admin/erasures"): "accounts",
    ("POST", "/v1/load_lora_adapter"): "operate", ("GET", "/scim/v2/Users"): "provision",
    ("GET", "/v1/models"): "inference",
}  # fmt: skip


@pytest.mark.parametrize("role", ROLE_NAMES)
async def test_a_role_opens_what_it_says_and_nothing_else(house: House, browser, role: str) -> None:
    token = await house.key(role, scopes=[role])
    async with browser() as visitor:
        await visitor.sign_in(token)
        for page, permission in PAGES.items():
            status = (await visitor.get(page)).status_code
            assert status == (200 if permission in ROLES[role] else 403), page
        shown = (await visitor.get("/requests")).text
        for page, permission in PAGES.items():
            assert (f'data-testid="nav-{page[1:]}"' in shown) == (permission in ROLES[role]), page
        for (method, path), permission in ROUTES.items():
            answer = await visitor.request(
                method, path, headers={"authorization": f"Bearer {token}", "accept": "*/*"}, json={"kept": []}
            )
            refused = answer.status_code == 403 and answer.text.find("lacks the permission") > 0
            assert refused == (permission not in ROLES[role]), (method, path, answer.status_code)


async def test_no_admin_route_is_open_to_a_plain_key(house: House, browser) -> None:
    """Also those that will be added after this test was written."""
    token = await house.key("plain")
    paths = house.app.openapi()["paths"]
    found = [
        (method.upper(), path) for path, methods in paths.items() for method in methods if path.startswith("/admin")
    ]
    assert len(found) > 20
    async with browser() as visitor:
        for method, path in found:
            path = path.replace("{", "").replace("}", "").replace(":path", "")
            answer = await visitor.request(method, path, headers={"authorization": f"Bearer {token}"}, json={})
            assert answer.status_code == 403, (method, path)


def test_the_roles_together_are_the_admin() -> None:
    assert permissions(["admin"]) == permissions(ROLE_NAMES)
    assert permissions(["unheard of"]) == frozenset()


def record(request_id: str, key_id: str, team_id: str | None) -> RequestRecord:
    return RequestRecord(
        request_id=request_id, started_at=datetime.now(UTC), route="/v1/chat/completions", key_id=key_id, model="m",
        provider="p", stream=False, status=200, team_id=team_id,
    )  # fmt: skip


async def test_a_viewer_sees_their_teams_requests_and_reads_no_body(house: House, browser) -> None:
    for team in ("red", "blue"):
        await house.keys.create_account("team", team)
    keys = {team: (await house.keys.create(team, team=team))[0] for team in ("red", "blue")}
    for team, key in keys.items():
        assert key.team is not None
        asked = record(f"req-{team}", key.id, key.team.id)
        await write_with_body(house.ledger, asked, "MARK", "[]", wrapper_of(house.gateway.config, create=True))
    async with browser() as viewer, browser() as auditor:
        await viewer.sign_in(await house.key("viewer", scopes=["viewer"], team="red"))
        page = (await viewer.get("/requests")).text
        assert "req-red" in page
        assert "req-blue" not in page
        assert (await viewer.get("/requests/req-blue")).status_code == 404
        assert (await viewer.get("/requests/req-red?said=1")).status_code == 403
        await auditor.sign_in(await house.key("auditor", scopes=["auditor"]))
        assert "MARK" in (await auditor.get("/requests/req-blue?said=1")).text
    (read,) = await house.gateway.audit.entries(action="body.read")
    assert read.subject == "req-blue"


async def test_ending_a_session_signs_it_out(house: House, admin: Browser, user: Browser) -> None:
    sessions = Sessions(house.keys, house.gateway.config.identity)
    worker = (await house.keys.get("worker")).id
    (theirs,) = [row for row in await sessions.list() if row.key_id == worker]
    assert (await admin.submit(f"/users/sessions/{theirs.id}/end")).status_code == 303
    assert (await user.get("/models")).status_code == 303
    assert len(await house.gateway.audit.entries(action="session.ended")) == 1


async def test_a_session_that_lies_unused_is_over(house: House) -> None:
    now = [datetime.now(UTC)]
    sessions = Sessions(house.keys, IdentityConfig(session_hours=10, idle_minutes=60), clock=lambda: now[0])
    key, _ = await house.keys.create("ann")
    token = await sessions.open(key, "key")
    for _ in range(9):
        now[0] += timedelta(minutes=59)
        assert await sessions.find(token) is not None
    now[0] += timedelta(minutes=61)
    assert await sessions.find(token) is None
    token = await sessions.open(key, "key")
    for _ in range(12):
        now[0] += timedelta(minutes=50)
        found = await sessions.find(token)
    assert found is None  # However much it is used.


async def test_what_an_admin_does_is_in_the_log_with_their_key(house: House, admin: Browser) -> None:
    await admin.submit("/keys", name="made", scopes="inference")
    (told,) = await house.gateway.audit.entries(action="key.created", limit=1)
    assert told.actor == (await house.keys.get("boss")).id
    await admin.submit("/caches/purge", model="scripted")
    assert (await house.gateway.audit.entries(limit=1))[0].action == "cache.purged"
    page = await admin.get("/audit?verify=1")
    assert "Holds" in page.text
