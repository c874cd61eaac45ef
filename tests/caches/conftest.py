"""A gateway with its caches on, on a socket, and clients with keys of their own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from caches_on import switch_on
from serving import GatewayServer, ScriptedModel

from wootz.core import LanguageModel


@pytest.fixture(scope="session")
def cached_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayServer]:
    def models() -> dict[str, LanguageModel]:
        return {"scripted": ScriptedModel("scripted"), "other": ScriptedModel("other")}

    with GatewayServer(tmp_path_factory.mktemp("caches"), models) as server:
        yield server


@pytest.fixture
def server(cached_server: GatewayServer) -> GatewayServer:
    """The running gateway: its models as new, the exact cache on and empty."""
    switch_on(cached_server, {"exact": {"enabled": True}})
    return cached_server


@pytest.fixture
def model(server: GatewayServer) -> ScriptedModel:
    model = server.gateway.models["scripted"]
    assert isinstance(model, ScriptedModel)
    return model


@pytest.fixture
def http(server: GatewayServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {server.key}"}, timeout=30) as client:
        yield client


@pytest.fixture
def admin(server: GatewayServer) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {server.admin_key}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=30) as client:
        yield client


NUMBERS = itertools.count()


@pytest.fixture
def new_client(server: GatewayServer) -> Iterator[Callable[..., httpx.Client]]:
    """A client with a key of its own: another tenant."""
    clients: list[httpx.Client] = []

    def make(**options: Any) -> httpx.Client:
        token = server.call(server.keys.create(f"tenant {next(NUMBERS)}", **options))[1]
        client = httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {token}"}, timeout=30)
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()
