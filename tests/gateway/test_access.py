"""Who may do what over HTTP: keys, scopes, model lists, limits; and what is open to all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import ASK, CHAT, GatewayServer, ScriptedModel

ADMIN = "/admin/keys"


def as_user(server: GatewayServer, token: str | None) -> httpx.Client:
    return httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {token}"} if token else {}, timeout=30)


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Basic abc", "Bearer sk-wootz-wrong", "sk-wootz-x", b"Bearer \xff"]
)
def test_no_good_key_no_answer(server: GatewayServer, model: ScriptedModel, authorization: Any) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("GET", ADMIN), ("POST", ADMIN)):
        response = httpx.request(method, server.url + path, headers=headers, content=b"not read, not parsed")
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
    assert model.asked == []


def test_a_key_from_birth_to_revocation(server: GatewayServer, admin: httpx.Client) -> None:
    made = admin.post(ADMIN, json={"name": "ada", "models": ["scripted"], "requests_per_minute": 100})
    assert made.status_code == 201
    assert made.headers["cache-control"] == "no-store"
    token = made.json()["key"]
    listed = admin.get(ADMIN)
    assert token not in listed.text
    (key,) = [key for key in listed.json()["data"] if key["name"] == "ada"]
    assert {**key, "key": token} == made.json()

    with as_user(server, token) as ada:
        assert ada.post(CHAT, json=ASK).status_code == 200
        revoked = admin.delete(f"{ADMIN}/ada")
        assert revoked.json()["revoked_at"] is not None
        refused = ada.post(CHAT, json=ASK)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "api_key_revoked")
    assert admin.delete(f"{ADMIN}/nobody").status_code == 404
    assert admin.post(ADMIN, json={"name": "ada"}).json()["error"]["code"] == "name_taken"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "name"),
        ({"name": 5}, "name"),
        ({"name": "x", "scopes": ["root"]}, "scopes[0]"),
        ({"name": "x", "models": []}, "models"),
        ({"name": "x", "requests_per_minute": 0}, "requests_per_minute"),
        ({"name": "x", "expires_at": "tomorrow"}, "expires_at"),
        ({"name": "x", "expires_at": "2000-01-01T00:00:00Z"}, "expires_at"),
        ({"name": "x", "expires_at": "2999-01-01T00:00:00"}, "expires_at"),
        ({"name": "x", "model": "scripted"}, "model"),
    ],
)
def test_a_bad_key_request_names_its_fault(admin: httpx.Client, body: dict, param: str) -> None:
    response = admin.post(ADMIN, json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_keys_are_for_administrators(http: httpx.Client) -> None:
    for response in (http.get(ADMIN), http.post(ADMIN, json={"name": "me", "scopes": ["admin"]})):
        assert (response.status_code, response.json()["error"]["code"]) == (403, "insufficient_scope")


def test_a_key_sees_only_its_models(server: GatewayServer) -> None:
    _, token = server.call(server.keys.create("narrow", models=["org/other"]))
    with as_user(server, token) as user:
        assert [model["id"] for model in user.get("/v1/models").json()["data"]] == ["org/other"]
        assert user.get("/v1/models/org/other").status_code == 200
        hidden, missing = user.get("/v1/models/scripted"), user.get("/v1/models/nothing")
        assert hidden.status_code == missing.status_code == 404
        assert hidden.json()["error"]["message"].replace("scripted", "nothing") == missing.json()["error"]["message"]
        assert user.post(CHAT, json=ASK).json()["error"]["code"] == "model_not_found"
        assert user.post(CHAT, json=ASK | {"model": "org/other"}).status_code == 200


def test_requests_per_minute(server: GatewayServer) -> None:
    _, token = server.call(server.keys.create("slow", requests_per_minute=2))
    with as_user(server, token) as user:
        assert [user.post(CHAT, json=ASK).status_code for _ in range(3)] == [200, 200, 429]
        server.time += 45.5
        refused = user.post(CHAT, json=ASK | {"stream": True})
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "15")
        assert refused.json()["error"]["code"] == "requests_per_minute"
        server.time += 15
        assert user.post(CHAT, json=ASK).status_code == 200


def test_probes_and_metrics_need_no_key(server: GatewayServer, model: ScriptedModel) -> None:
    with as_user(server, None) as anyone:
        assert anyone.get("/healthz").json() == {"status": "ok", "waiting_for": []}
        assert anyone.get("/readyz").status_code == 200
        model.loaded = False
        unready = anyone.get("/readyz")
        assert (unready.status_code, unready.json()["waiting_for"]) == (503, ["scripted"])
        assert anyone.get("/healthz").status_code == 200
        metrics = anyone.get("/metrics")
        assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert "wootz_requests_total" in metrics.text


def test_without_accounts_everybody_may_ask(tmp_path: Path) -> None:
    with GatewayServer(tmp_path, lambda: {"scripted": ScriptedModel("scripted")}, accounts=False) as server:
        with as_user(server, None) as anyone:
            response = anyone.post(CHAT, json=ASK)
            assert response.status_code == 200
            assert server.call(server.ledger.get(response.headers["x-request-id"])).key_id is None
            assert anyone.get(ADMIN).status_code == 404
        with as_user(server, "whatever the client has") as user:
            assert user.post(CHAT, json=ASK).status_code == 200
