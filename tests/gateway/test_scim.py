"""SCIM: a checker that we did not write finds nothing wrong, and who is ended there is ended here at once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import httpx2
import pytest
from scim2_client.engines.httpx2 import SyncSCIMClient
from scim2_tester import Status, check_server
from serving import CHAT, GatewayServer, ScriptedModel

GROUPS = {"llm-admins": ["admin"], "llm-users": ["developer"]}
USER = {"schemas": ["urn:ietf:params:scim:schemas:core:2.0:User"], "userName": "ann@example.com", "active": True}
GROUP = {"schemas": ["urn:ietf:params:scim:schemas:core:2.0:Group"], "displayName": "llm-users"}
PATCH = "urn:ietf:params:scim:api:messages:2.0:PatchOp"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayServer]:
    settings = {"identity": {"groups": GROUPS}}
    folder = tmp_path_factory.mktemp("scim")
    with GatewayServer(folder, lambda: {"scripted": ScriptedModel("scripted")}, settings=settings) as server:
        yield server


@pytest.fixture(scope="module")
def token(server: GatewayServer) -> str:
    return server.call(server.keys.create("identity provider", scopes=["provisioner"]))[1]


@pytest.fixture
def scim(server: GatewayServer, token: str) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {token}", "content-type": "application/scim+json"}
    with httpx.Client(base_url=f"{server.url}/scim/v2", headers=headers, timeout=30) as client:
        yield client


def patch(*operations: dict[str, Any]) -> dict[str, Any]:
    return {"schemas": [PATCH], "Operations": list(operations)}


OURS = ("did not remove attribute 'active'", "unexpected value for 'members'")
"""Two things that we do otherwise, as RFC 7644 lets us: who is neither active nor not is active (3.5.2.2, a default
value), and a member's ``display`` is the name that the person has here."""


@pytest.mark.slow
def test_a_checker_that_we_did_not_write_finds_nothing_wrong(server: GatewayServer, token: str) -> None:
    http = httpx2.Client(base_url=f"{server.url}/scim/v2", headers={"Authorization": f"Bearer {token}"}, timeout=60)
    results = check_server(SyncSCIMClient(http))
    wrong = [f"{one.title}: {one.reason}" for one in results if one.status not in (Status.SUCCESS, Status.SKIPPED)]
    assert [one for one in wrong if not any(otherwise in one for otherwise in OURS)] == []
    assert sum(one.status == Status.SUCCESS for one in results) > 20


def test_who_is_deactivated_loses_keys_at_once(server: GatewayServer, scim: httpx.Client) -> None:
    created = scim.post("/Users", json=USER).json()
    group = scim.post("/Groups", json=GROUP | {"members": [{"value": created["id"]}]}).json()
    key, secret = server.call(server.keys.create("ann's", user="ann@example.com"))
    ask = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}

    def status() -> int:
        return httpx.post(server.url + CHAT, json=ask, headers={"authorization": f"Bearer {secret}"}).status_code

    assert status() == 200
    answer = scim.patch(f"/Users/{created['id']}", json=patch({"op": "Replace", "path": "active", "value": False}))
    assert answer.json()["active"] is False
    assert status() == 401
    (told,) = server.call(server.gateway.audit.entries(action="user.deactivated", subject=created["id"]))
    assert told.detail == {"active": False, "keys_ended": 2, "sessions_ended": 0}
    assert told.actor == server.call(server.keys.get("identity provider")).id

    scim.patch(f"/Users/{created['id']}", json=patch({"op": "replace", "value": {"active": True}}))
    assert status() == 401  # What was revoked stays so.
    assert scim.get(f"/Users/{created['id']}").json()["groups"][0]["display"] == "llm-users"
    assert scim.delete(f"/Users/{created['id']}").status_code == 204
    assert scim.get(f"/Groups/{group['id']}").json().get("members") is None
    assert key.id in [one.id for one in server.call(server.keys.list())]


def test_leaving_a_group_takes_its_roles_from_the_persons_keys(server: GatewayServer, scim: httpx.Client) -> None:
    user = scim.post("/Users", json=USER | {"userName": "ben@example.com"}).json()
    group = scim.post("/Groups", json=GROUP | {"displayName": "llm-admins", "members": [{"value": user["id"]}]}).json()
    _, secret = server.call(server.keys.create("ben's", user="ben@example.com", scopes=["admin"]))
    bearer = {"authorization": f"Bearer {secret}"}
    assert httpx.get(f"{server.url}/admin/keys", headers=bearer).status_code == 200
    gone = {"op": "remove", "path": f'members[value eq "{user["id"]}"]'}
    assert scim.patch(f"/Groups/{group['id']}", json=patch(gone)).status_code == 200
    assert httpx.get(f"{server.url}/admin/keys", headers=bearer).status_code == 401


def test_two_changes_at_once_undo_nothing_of_each_other(scim: httpx.Client) -> None:
    first, second = (scim.post("/Users", json=USER | {"userName": name}).json()["id"] for name in ("cleo", "dora"))
    group = scim.post("/Groups", json=GROUP | {"displayName": "both"}).json()["id"]
    end, members = {"op": "replace", "path": "active", "value": False}, [{"value": first}, {"value": second}]

    def at_once(path: str, *operations: dict[str, Any]) -> None:
        with ThreadPoolExecutor() as pool:
            answers = list(pool.map(lambda one: scim.patch(path, json=patch(one)), operations))
        assert [answer.status_code for answer in answers] == [200] * len(operations)

    for number in range(5):
        scim.patch(f"/Users/{first}", json=patch({"op": "replace", "path": "active", "value": True}))
        at_once(f"/Users/{first}", {"op": "replace", "path": "displayName", "value": f"Cleo {number}"}, end)
        user = scim.get(f"/Users/{first}").json()
        assert (user["displayName"], user["active"]) == (f"Cleo {number}", False)
        scim.patch(f"/Groups/{group}", json=patch({"op": "add", "path": "members", "value": members}))
        gone = [{"op": "remove", "path": f'members[value eq "{one}"]'} for one in (first, second)]
        at_once(f"/Groups/{group}", *gone)
        assert "members" not in scim.get(f"/Groups/{group}").json()


def test_filters_find_and_bad_ones_are_told(scim: httpx.Client) -> None:
    scim.post("/Users", json=USER | {"userName": 'o"hara', "externalId": "42"})
    found = scim.get("/Users", params={"filter": r'userName eq "o\"hara"'}).json()
    assert [one["externalId"] for one in found["Resources"]] == ["42"]
    assert scim.get("/Users", params={"filter": 'externalId eq "43"'}).json()["totalResults"] == 0
    for name in ("Ünal_%", "unal_%", "KIM@example.com"):
        scim.post("/Users", json=USER | {"userName": name, "externalId": name})
    for asked, names in (
        ('userName eq "kim@EXAMPLE.com"', ["KIM@example.com"]),
        ('userName eq "ünal_%"', ["Ünal_%"]),
        ('userName eq "U\u0308NAL_%"', ["Ünal_%"]),  # Two characters that are composed to one.
        ('externalId eq "kim@example.com"', []),  # Of these the case counts.
        ('externalId eq "KIM@example.com" and active eq true', ["KIM@example.com"]),
        ('userName eq "KIM@example.com" or userName eq "unal_%"', ["unal_%", "KIM@example.com"]),
        ('not (userName eq "KIM@example.com") and externalId eq "unal_%"', ["unal_%"]),
        ('userName eq "ann\u0000"', []),
    ):
        search = {"schemas": ["urn:ietf:params:scim:api:messages:2.0:SearchRequest"], "filter": asked}
        for answer in (scim.get("/Users", params={"filter": asked}), scim.post("/.search", json=search)):
            assert [one["userName"] for one in answer.json().get("Resources", [])] == names, asked
    scim.post("/Groups", json=GROUP | {"displayName": "Readers"})
    (group,) = scim.get("/Groups", params={"filter": 'displayName eq "readers"'}).json()["Resources"]
    same = f'id eq "{group["id"]}" and displayName co "read"'
    assert scim.get("/Groups", params={"filter": same}).json()["totalResults"] == 1
    bad = scim.get("/Users", params={"filter": "userName is strange"})
    assert (bad.status_code, bad.json()["scimType"]) == (400, "invalidFilter")


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/Users", {**USER, "userName": "twice"}, 201),
        ("POST", "/Users", {**USER, "userName": "twice"}, 409),
        ("POST", "/Users", {"schemas": USER["schemas"]}, 400),
        ("POST", "/Users", [], 400),
        ("POST", "/Users", {**USER, "userName": "\x00"}, 400),
        ("POST", "/Groups", {**GROUP, "displayName": "g", "members": [{"value": "nobody"}]}, 404),
        ("GET", "/Users/nobody", None, 404),
        ("GET", "/Users/%00", None, 404),
        ("PATCH", "/Users/nobody", patch({"op": "replace", "path": "active", "value": False}), 404),
        ("DELETE", "/Groups/nobody", None, 404),
        ("GET", "/Nonsense", None, 404),
    ],
)
def test_wrong_requests_are_told_as_scim_has_it(
    scim: httpx.Client, method: str, path: str, body: Any, status: int
) -> None:
    answer = scim.request(method, path, json=body)
    assert answer.status_code == status, answer.text


def test_only_a_provisioner_may(server: GatewayServer) -> None:
    for key, status in ((server.key, 403), ("sk-wootz-wrong", 401), (server.admin_key, 200)):
        answer = httpx.get(f"{server.url}/scim/v2/Users", headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == status
    assert httpx.get(f"{server.url}/scim/v2/Users").status_code == 401
