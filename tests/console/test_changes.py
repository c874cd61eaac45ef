"""What changes something must come from our own pages, from somebody who may, and is said to work only when it did."""

from __future__ import annotations

import re

import pytest
from console_house import HTML, Browser

CHANGES = ["/keys", "/keys/any/revoke", "/logout", "/console/chat", "/caches/purge"]


async def change(visitor, path: str, csrf_token: str | None, **headers):
    token = {"X-CSRF-Token": csrf_token} if csrf_token is not None else {}
    body = {"model": "scripted", "messages": [{"role": "user", "content": "hello"}]}
    options = {"json": body} if path == "/console/chat" else {"data": {"name": "forged", "scopes": "admin"}}
    return await visitor.post(path, headers=HTML | token | headers, **options)


@pytest.mark.parametrize("path", CHANGES)
async def test_a_change_without_the_token_is_refused(house, admin, path):
    for csrf_token in (None, "", "wrong"):
        assert (await change(admin, path, csrf_token)).status_code == 403
    assert (await admin.get("/models")).status_code == 200, "still signed in"
    assert [key.name for key in await house.keys.list()] == ["boss"]
    assert house.model.requests == []


@pytest.mark.parametrize("path", CHANGES)
async def test_a_change_from_another_site_is_refused_even_with_the_token(house, admin, path):
    token = await admin.csrf_token()
    for headers in (
        {"Origin": "http://evil.test"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        answer = await change(admin, path, token, **headers)
        assert answer.status_code == 403
        assert "another site" in answer.text
    assert [key.name for key in await house.keys.list()] == ["boss"]


async def test_the_token_of_one_session_does_not_serve_another(house, admin, user):
    assert (await change(admin, "/keys", await user.csrf_token())).status_code == 403


async def test_without_accounts_another_site_still_cannot_chat(open_house):
    async with Browser(open_house.app) as visitor:
        answer = await change(visitor, "/console/chat", "", Origin="http://evil.test")
        assert answer.status_code == 403
        assert open_house.model.requests == []


async def test_a_new_key_is_shown_once_and_works(house, admin):
    answer = await admin.submit(
        "/keys", name="billing", scopes="inference", models="scripted", requests_per_minute="30", expires="7"
    )
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    shown = re.search(r'data-testid="key-plaintext">(sk-wootz-[\w-]{43})<', answer.text)
    assert shown is not None
    key = await house.keys.authenticate(shown[1])
    assert (key.name, key.scopes, key.models, key.requests_per_minute) == ("billing", ("inference",), ("scripted",), 30)
    assert key.expires_at is not None
    assert (key.expires_at - key.created_at).days in (6, 7)
    assert shown[1] not in (await admin.get("/keys")).text


async def test_a_bad_field_is_explained_and_the_form_keeps_the_rest(house, admin):
    for wrong in (
        {"name": ""},
        {"name": "boss"},
        {"scopes": "root"},
        {"scopes": []},
        {"requests_per_minute": "-1"},
        {"requests_per_minute": "many"},
        {"requests_per_minute": "²"},
        {"expires": "1000000"},
    ):
        answer = await admin.submit("/keys", **({"name": "kept-name", "scopes": "inference"} | wrong))
        assert answer.status_code == 400, wrong
        assert 'data-testid="key-error"' in answer.text
        assert ("kept-name" in answer.text) == ("name" not in wrong)
    assert len(await house.keys.list()) == 1


async def test_a_key_is_revoked(house, admin):
    created, token = await house.keys.create("old")
    assert (await admin.submit(f"/keys/{created.id}/revoke")).status_code == 303
    assert (await house.keys.list())[-1].revoked_at is not None
    page = (await admin.get("/keys")).text
    assert "Revoked" in page
    assert token not in page


async def test_keys_are_for_admins(house, user):
    created, _ = await house.keys.create("other")
    assert (await user.get("/keys")).status_code == 403
    assert (await user.submit("/keys", name="mine", scopes="admin")).status_code == 403
    assert (await user.submit(f"/keys/{created.id}/revoke")).status_code == 403
    assert 'data-testid="nav-keys"' not in (await user.get("/models")).text
    assert [key.revoked_at for key in await house.keys.list()] == [None, None]
