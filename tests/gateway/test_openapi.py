"""``/openapi.json`` is true: whatever it allows or forbids, the server answers as it says and never with a 5xx."""

from __future__ import annotations

import httpx
import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serving import GatewayServer

from wootz.core import Config
from wootz.gateway import Gateway, KeyStore, add_routes
from wootz.store import Database
from wootz.telemetry import Ledger, Telemetry


def specification() -> dict:
    """Of the same routes that run, without anything behind them."""
    database = Database("sqlite+aiosqlite://")
    app = FastAPI()
    add_routes(app, Gateway(Config(), {}, KeyStore(database), Telemetry(Ledger(database), {})))
    return app.openapi()


schema = schemathesis.openapi.from_dict(specification())
CHECKS = [
    schemathesis.checks.not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]


@schema.parametrize()
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_request_is_answered_as_promised(case: schemathesis.Case, server: GatewayServer) -> None:
    is_answered_as_promised(case, server)


@pytest.mark.slow
@schema.parametrize()
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_more_requests_are_too(case: schemathesis.Case, server: GatewayServer) -> None:
    is_answered_as_promised(case, server)


def is_answered_as_promised(case: schemathesis.Case, server: GatewayServer) -> None:
    headers = {"authorization": f"Bearer {server.admin_key}"}
    if case.path.startswith("/admin") and case.method == "DELETE":
        headers = {"authorization": f"Bearer {server.key}"}  # It would find the keys of the other tests.
    case.call_and_validate(base_url=server.url, headers=headers, checks=CHECKS, timeout=60)


def test_a_number_that_no_database_holds_is_refused(server: GatewayServer) -> None:
    headers = {"authorization": f"Bearer {server.admin_key}"}
    assert httpx.get(f"{server.url}/admin/audit", params={"before": 2**63}, headers=headers).status_code == 400


def test_no_route_claims_a_422(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    operations = [operation for path in paths.values() for operation in path.values()]
    assert not any("422" in operation["responses"] for operation in operations)
    assert {"400", "401", "403", "404", "413", "429", "503"} <= set(paths["/v1/chat/completions"]["post"]["responses"])
    assert "text/event-stream" in paths["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    assert paths["/v1/models"]["get"]["security"] == [{"key": []}]
