"""A gateway with a secret in every kind of place that config has one, before endpoints that fail and tell on it.

Rotation while requests come, and all that the gateway has said or written, searched with the scanner's eyes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from serving import CHAT, GatewayServer

from wootz.core import Config, ConfigError
from wootz.core.secrets import Secret, use_stores
from wootz.gateway.routing import open_routes
from wootz.providers import live_key, open_models
from wootz.providers.live_key import LiveKey
from wootz.store.secrets import LocalStore, open_local, open_source
from wootz.store.secrets.scan.guises import Known, Search
from wootz.telemetry import PriceBook

PLANTED = {
    name: f"Zq7-{name}-w9Kd2LxT5vBn" for name in ("env", "file", "store", "store2", "header", "vault")
}  # wootz: no secret
ANSWER = {
    "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
    "choices": [{"index": 0, "delta": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
}  # fmt: skip


class Endpoint(BaseHTTPRequestHandler):
    """Answers who has a valid key; at ``/tell/STATUS`` it repeats every header it was sent in an error."""

    valid: set[str]
    seen: list[str]
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        key = self.headers.get("authorization", "").removeprefix("Bearer ")
        type(self).seen.append(key)
        if self.path.startswith("/tell/"):
            told = "; ".join(f"{name}: {value}" for name, value in self.headers.items())
            status, kind = int(self.path.split("/")[2]), "application/json"
            body = json.dumps({"error": {"message": told, "code": None, "param": told}}).encode()
        elif key in type(self).valid:
            status, kind, body = 200, "text/event-stream", f"data: {json.dumps(ANSWER)}\n\ndata: [DONE]\n\n".encode()
        else:
            status, kind, body = 401, "application/json", b"{}"
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        """It is the Vault, too."""
        body = json.dumps({"data": {"data": {"key": PLANTED["vault"]}, "metadata": {"version": 4}}}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def endpoint() -> Iterator[Any]:
    handler = type("Handler", (Endpoint,), {"valid": {PLANTED["store"]}, "seen": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        handler.url = f"http://127.0.0.1:{server.server_port}"
        yield handler
        server.shutdown()


class House:
    """The gateway, its store, and all that it lets out."""

    def __init__(self, server: GatewayServer, config: Config, store: LocalStore) -> None:
        self.server, self.config, self.store = server, config, store
        self.client = httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {server.key}"}, timeout=30)

    def ask(self, model: str) -> httpx.Response:
        return self.client.post(CHAT, json={"model": model, "messages": [{"role": "user", "content": "hi"}]})


@pytest.fixture
def house(endpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    monkeypatch.setattr(live_key, "REFRESH_SECONDS", 0.02)
    monkeypatch.setenv("A_KEY", PLANTED["env"])
    monkeypatch.setenv("VAULT_TOKEN_HERE", PLANTED["vault"] + "-token")
    (tmp_path / "key").write_text(PLANTED["file"])
    references = {"env": "env:A_KEY", "file": f"file:{tmp_path}/key", "store": "store:p", "vault": "vault:kv/p#key"}
    providers: dict[str, Any] = {"good": {"base_url": endpoint.url, "api_key": "store:p"}}
    for name, reference in references.items():
        for status in (400, 401, 429, 500):
            url = f"{endpoint.url}/tell/{status}"
            providers[f"{name}-{status}"] = {"base_url": url, "api_key": reference, "headers": {"x-too": "store:h"}}
    models = {name: {"provider": name} for name in providers}
    secrets = {"vault_address": endpoint.url, "vault_token": "env:VAULT_TOKEN_HERE"}
    home = tmp_path / "home"
    tree = {"providers": providers, "models": models, "secrets": secrets, "routes": {"way": {"targets": ["good"]}}}
    config = Config.model_validate({"home": home, **tree})
    store = open_local(config)
    store.set("p", PLANTED["store"])
    store.set("h", PLANTED["header"])
    use_stores(lambda scheme: open_source(config, scheme))
    with GatewayServer(home, dict) as server:

        async def open_all() -> None:
            opened = open_models(config, {})
            server.gateway.models = opened | open_routes(config, opened, PriceBook.of(config))

        server.call(open_all())
        yield House(server, config, store)
    use_stores(None)


def test_a_key_rotates_between_requests_and_none_is_refused(house: House, endpoint: Any) -> None:
    """The endpoint takes both keys in the overlap, and the old one no longer once it was retired."""
    for number in range(3):
        new = f"{PLANTED['store2']}-{number}"
        endpoint.valid.add(new)
        assert house.ask("way").status_code == 200
        version = house.store.rotate("p", new)
        for _ in range(200):
            answer = house.ask("way")
            assert answer.status_code == 200, answer.text
            if endpoint.seen[-1] == new:
                break
        else:
            pytest.fail("the new version was not taken")
        with pytest.raises(ConfigError, match="in use"):
            _settled(house, version - 1)
        record = house.server.call(house.server.ledger.get(answer.headers["x-request-id"]))
        assert record.timeline.attempts[0].secret_version == version
        straight = house.server.call(house.server.ledger.get(house.ask("good").headers["x-request-id"]))
        assert straight.timeline.secret_version == version
    assert [one.state for one in house.store.about("p").versions] == ["previous"] * 3 + ["current"]


def _settled(house: House, version: int) -> None:
    """Uses are written down a moment later; then retirement says no."""
    for _ in range(100):
        if house.store.about("p").versions[version - 1].uses:
            break
        time.sleep(0.01)
    house.store.retire("p", version)


def test_no_secret_is_in_anything_that_the_gateway_says_or_writes(
    house: House, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    house.server.telemetry.tracer = provider.get_tracer("test")
    said = [answer.text + str(answer.headers) for answer in map(house.ask, house.config.models)]
    assert any("x-too" in text for text in said), "the endpoint's own words are passed on, without the secrets"
    admin = {"authorization": f"Bearer {house.server.admin_key}"}
    for page in ("/metrics", "/v1/models", "/admin/routes", "/admin/keys", "/health", "/ready", "/openapi.json"):
        said.append(httpx.get(house.server.url + page, headers=admin).text)
    said += [repr(house.server.gateway.models), repr(vars(house.server.gateway)), repr(house.config)]
    said += [house.config.model_dump_json(), *(str(span.to_json()) for span in spans.get_finished_spans())]
    said += [repr(vars(model)) for model in house.server.gateway.models.values()]
    said += [repr(house.store.list()), repr(house.store.events()), caplog.text, *capfd.readouterr()]
    said += [file.read_bytes().decode("latin-1") for file in (tmp_path / "home").rglob("*") if file.is_file()]

    search = Search([Known(name, value) for name, value in PLANTED.items()])
    assert [what for text in said for _, _, what in search.find(text)] == []
    assert len(spans.get_finished_spans()) >= len(house.config.models)


async def test_requests_go_on_while_the_store_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_key, "REFRESH_SECONDS", 0.001)
    written: list[dict[int, int]] = []
    answers: list[Secret | Exception] = [Secret("one", 1), ConfigError("away"), Secret("two", 2)]

    def read() -> Secret:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    key = LiveKey(read, written.append)
    values = []
    while "two" not in values:
        values.append((await key.use()).value)
        await asyncio.sleep(0.002)
    await key.close()
    assert set(values) == {"one", "two"}
    assert sum(sum(uses.values()) for uses in written) == len(values)
    assert key.conceal("one, two, three") == "***, ***, three"
