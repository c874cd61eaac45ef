"""One running gateway with scripted models for the whole room."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import httpx
import pytest
from priced_house import PRICE
from serving import GatewayServer, ScriptedModel

from wootz.telemetry.price_book import PriceBook


@pytest.fixture(scope="session")
def gateway_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayServer]:
    def models() -> dict:
        return {"scripted": ScriptedModel("scripted"), "org/other": ScriptedModel("org/other")}

    with GatewayServer(tmp_path_factory.mktemp("gateway"), models) as server:
        yield server


@pytest.fixture
def server(gateway_server: GatewayServer) -> GatewayServer:
    """The running gateway, its models as new."""
    models = gateway_server.gateway.models
    gateway_server.gateway.models = {name: ScriptedModel(name) for name in models}
    return gateway_server


@pytest.fixture
def priced(server: GatewayServer) -> Iterator[GatewayServer]:
    """The same, its answers for money."""
    server.wall = datetime.now(UTC).timestamp()
    free, server.telemetry.prices = server.telemetry.prices, PriceBook({"scripted": PRICE})
    yield server
    server.telemetry.prices = free


@pytest.fixture
def model(server: GatewayServer) -> ScriptedModel:
    model = server.gateway.models["scripted"]
    assert isinstance(model, ScriptedModel)
    return model


@pytest.fixture
def http(server: GatewayServer) -> Iterator[httpx.Client]:
    """A client with a plain user's key."""
    headers = {"authorization": f"Bearer {server.key}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=30) as client:
        yield client


@pytest.fixture
def admin(server: GatewayServer) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {server.admin_key}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=30) as client:
        yield client
