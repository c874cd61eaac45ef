"""Whose turn it is at the engine, as far as a caller may say; and an administrator's hands on the engines."""

from __future__ import annotations

from typing import Any

import httpx
from serving import ASK, CHAT, GatewayServer, ScriptedModel

from wootz.core import NotFoundError
from wootz.engine.protocol import Stats
from wootz.providers import EngineModel


class Engine:
    """Says what it was told to do."""

    hello = None
    ready = True

    def __init__(self) -> None:
        self.orders: list[Any] = []

    async def sleep(self, level: int) -> None:
        self.orders.append(("sleep", level))

    async def wake(self) -> None:
        self.orders.append("wake")

    async def update_weights(self, path: str) -> None:
        if path == "nothing":
            raise NotFoundError("nothing: no such model file or folder")
        self.orders.append(path)

    async def stats(self) -> Stats:
        return Stats(**dict.fromkeys(Stats.__struct_fields__, 0))


def test_work_is_counted_for_the_key_whatever_the_request_says(http: httpx.Client, model: ScriptedModel) -> None:
    assert http.post(CHAT, json={**ASK, "user": "someone else", "_caller": "someone else"}).status_code == 200
    (asked,) = model.asked
    assert asked.caller.startswith("key")
    assert asked.user == "someone else"
    assert asked.caller not in asked.model_dump_json(exclude_unset=True), "no remote provider is told"


def test_anybody_may_give_way_and_an_administrator_go_first(
    http: httpx.Client, admin: httpx.Client, model: ScriptedModel
) -> None:
    assert http.post(CHAT, json={**ASK, "priority": 3}).status_code == 200
    refused = http.post(CHAT, json={**ASK, "priority": -1})
    assert (refused.status_code, refused.json()["error"]["param"]) == (403, "priority")
    assert admin.post(CHAT, json={**ASK, "priority": -1}).status_code == 200
    assert [request.priority for request in model.asked] == [3, -1]
    assert admin.post(CHAT, json={**ASK, "priority": 101}).status_code == 400


def test_an_administrator_puts_an_engine_to_sleep_and_gives_it_weights(
    server: GatewayServer, admin: httpx.Client, http: httpx.Client
) -> None:
    engine = Engine()
    server.gateway.models = {**server.gateway.models, "org/local": EngineModel("org/local", engine)}  # type: ignore[arg-type]
    at = "/admin/models/org/local"
    assert admin.post(f"{at}/sleep", json={"level": 2}).json() == {"model": "org/local", "state": "asleep"}
    assert admin.post(f"{at}/sleep", json={}).status_code == 200
    assert admin.post(f"{at}/wake_up").json()["state"] == "awake"
    assert admin.post(f"{at}/weights", json={"path": "/models/new"}).status_code == 200
    assert engine.orders == [("sleep", 2), ("sleep", 1), "wake", "/models/new"]
    assert admin.post(f"{at}/weights", json={"path": "nothing"}).status_code == 404
    assert admin.post(f"{at}/sleep", json={"level": 3}).status_code == 400
    assert admin.post("/admin/models/nobody/sleep", json={}).status_code == 404
    assert admin.post("/admin/models/scripted/sleep", json={}).status_code == 400, "it is not computed here"
    assert http.post(f"{at}/sleep", json={}).status_code == 403
    assert httpx.post(f"{server.url}{at}/sleep", json={}).status_code == 401
