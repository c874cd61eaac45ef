"""The fault matrix, over real sockets: what an endpoint does wrong, and what the user sees, pays and finds recorded.

``docs/reliability.md`` has the same as a table. Each fault is met by a route of that endpoint alone, and by one that
has a sound endpoint behind it; each time streamed and whole.
"""

from __future__ import annotations

import datetime
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fakes import faulty
from fakes.faulty import FaultyEndpoint
from serving import GatewayServer

from wootz.core import Config
from wootz.core.journey import Journey
from wootz.gateway.routing import Route, open_routes
from wootz.gateway.routing.latency import ENOUGH
from wootz.providers import open_models
from wootz.telemetry import PriceBook, RequestRecord

CHAT = "/v1/chat/completions"
ANSWER_COST = Decimal("0.000038")
"""11 tokens in and 2 out, at this price."""
PRICE = {"input": "2", "output": "8"}


@dataclass
class Outcome:
    """Of one request: what the client got, and what is left of it."""

    status: int
    text: str
    error: str | None
    ended_well: bool
    headers: httpx.Headers
    record: RequestRecord
    journey: Journey

    @property
    def attempts(self) -> list[tuple[str, str | None]]:
        return [(attempt.deployment, attempt.error_code) for attempt in self.journey.attempts]

    @property
    def tokens(self) -> list[tuple[int, int]]:
        return [(attempt.prompt_tokens, attempt.completion_tokens) for attempt in self.journey.attempts]


class Gate:
    """A gateway before a faulty endpoint and a sound one, each asked through routes that are new for each test."""

    def __init__(self, server: GatewayServer, faulty: FaultyEndpoint, sound: FaultyEndpoint) -> None:
        self.server, self.faulty, self.sound = server, faulty, sound
        self.client = httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {server.key}"}, timeout=30)
        self.journeys: dict[str, Journey] = {}
        chat = server.gateway.chat

        def remember(key: Any, request: Any, *, request_id: str, **rest: Any) -> Any:
            self.journeys[request_id] = request.journey
            return chat(key, request, request_id=request_id, **rest)

        server.gateway.chat = remember  # type: ignore[method-assign]

    def open(self, address: str, clock: Callable[[], float] = lambda: 0.0) -> None:
        """Breakers and Retry-After go by the clock; by default it stands, however slow the machine is."""
        models = {
            "faulty": {"base_url": address, "price": PRICE},
            "sound": {"base_url": self.sound.url, "price": PRICE},
        }
        routes = {
            "alone": {"targets": ["faulty"], "retries": 0},
            "pair": {"targets": ["faulty", "sound"], "retries": 0},
            "hasty-alone": {"targets": ["faulty"], "retries": 0, "first_token_seconds": 0.3},
            "hasty-pair": {"targets": ["hasty-alone", "sound"], "retries": 0},
            "ending": {"targets": ["faulty", "sound"], "retries": 0, "total_seconds": 2},
            "hedged": {"targets": ["faulty", "sound"], "retries": 0, "hedge": True},
            "patient": {"targets": ["faulty"], "retries": 1, "max_wait_seconds": 2},
        }
        config = Config.model_validate({"home": self.server.config.home, "models": models, "routes": routes})

        async def open_all() -> None:
            opened = open_models(config, {})
            self.server.telemetry.prices = PriceBook.of(config)
            self.server.gateway.models = opened | open_routes(config, opened, self.server.telemetry.prices, clock)

        self.server.call(open_all())
        self.faulty.requests.clear()
        self.sound.requests.clear()
        self.faulty.left.clear()

    def ask(self, route: str, *, stream: bool) -> Outcome:
        body = {"model": route, "messages": [{"role": "user", "content": "hi"}], "stream": stream}
        answer = self.client.post(CHAT, json=body)
        request_id = answer.headers["x-request-id"]
        text, error, ended_well = read(answer)
        rows = self.server.call(self.server.ledger.list(search=request_id))
        assert len(rows) == 1
        return Outcome(answer.status_code, text, error, ended_well, answer.headers, rows[0], self.journeys[request_id])


def read(answer: httpx.Response) -> tuple[str, str | None, bool]:
    """The answer's text, its error code, and whether it ended as an answer does."""
    if not answer.headers["content-type"].startswith("text/event-stream"):
        body = answer.json()
        if "error" in body:
            return "", body["error"]["code"], False
        return body["choices"][0]["message"]["content"], None, True
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    text, error = "", None
    for event in events:
        if event != "[DONE]":
            parsed = json.loads(event)
            error = parsed["error"]["code"] if "error" in parsed else error
            text += "".join(choice["delta"].get("content") or "" for choice in parsed.get("choices", []))
    return text, error, events[-1] == "[DONE]"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    folder = tmp_path_factory.mktemp("faults")
    with FaultyEndpoint() as faulty_, FaultyEndpoint() as sound, GatewayServer(folder, dict) as server:
        gate = Gate(server, faulty_, sound)
        with gate.client:
            yield gate


@pytest.fixture
def gate(house: Gate) -> Gate:
    house.open(house.faulty.url)
    return house


BEFORE_CONTENT = {
    "5xx": (faulty.status("503 Service Unavailable"), 502, "upstream_error"),
    "429": (faulty.status("429 Too Many Requests", retry_after="7"), 429, "upstream_rate_limit"),
    "our key refused": (faulty.status("401 Unauthorized"), 502, "upstream_refused"),
    "hang before headers": (faulty.hang_before_headers, 502, "first_token_timeout"),
    "hang before content": (faulty.hang_before_content, 502, "first_token_timeout"),
    "cut before content": (faulty.cut_before_content, 502, "upstream_cut_off"),
    "malformed events": (faulty.malformed_events, 502, "upstream_malformed"),
    "wrong content type": (faulty.web_page, 502, "upstream_content_type"),
    "not HTTP": (faulty.not_http, 502, "upstream_malformed"),
}
MID_STREAM = {
    "hang mid-stream": (faulty.hang_mid_stream, "total_timeout"),
    "cut mid-stream": (faulty.cut_mid_stream, "upstream_cut_off"),
    "end without usage": (faulty.end_without_usage, "upstream_cut_off"),
    "malformed mid-stream": (faulty.malformed_mid_stream, "upstream_malformed"),
}
NOT_THERE = {
    "no name": "upstream_unknown_host",
    "no port": "upstream_unreachable",
    "tls": "upstream_tls",
    "tls to http": "upstream_tls",
}
STREAMED = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])


@STREAMED
@pytest.mark.parametrize("name", BEFORE_CONTENT)
def test_before_any_content(gate: Gate, name: str, stream: bool) -> None:
    gate.faulty.fault, status, code = BEFORE_CONTENT[name]
    hasty = "hasty-" if name.startswith("hang") else ""

    alone = gate.ask(f"{hasty}alone", stream=stream)
    assert alone.status == alone.record.status == status
    assert alone.error == alone.record.error_code == code
    assert alone.attempts == [("faulty", code)]
    assert alone.tokens == [(0, 0)]
    assert alone.headers["x-wootz-attempts"] == "1"
    assert "x-wootz-model" not in alone.headers
    assert alone.headers.get("retry-after") == ("7" if name == "429" else None)

    gate.open(gate.faulty.url)
    pair = gate.ask(f"{hasty}pair", stream=stream)
    assert (pair.status, pair.text, pair.ended_well) == (200, "Hello", True)
    assert pair.attempts == [("faulty", code), ("sound", None)]
    assert (alone.record.cost, pair.record.cost) == (0, ANSWER_COST)
    assert pair.tokens == [(0, 0), (11, 2)]
    assert (pair.record.prompt_tokens, pair.record.completion_tokens) == (11, 2)
    assert (pair.headers["x-wootz-model"], pair.headers["x-wootz-attempts"]) == ("sound", "2")


@STREAMED
def test_parts_that_came_together_are_charged_each(gate: Gate, stream: bool) -> None:
    gate.faulty.fault = faulty.cut_after_many
    outcome = gate.ask("alone", stream=stream)
    assert outcome.text == ("Hel" * 40 if stream else "")
    assert outcome.tokens == [(0, 40)]


@STREAMED
@pytest.mark.parametrize("name", MID_STREAM)
def test_after_content_nobody_goes_on(gate: Gate, name: str, stream: bool) -> None:
    gate.faulty.fault, code = MID_STREAM[name]
    outcome = gate.ask("ending" if name.startswith("hang") else "pair", stream=stream)
    assert outcome.status == (200 if stream else 502)
    assert outcome.text == ("Hel" if stream else "")
    assert outcome.error == code
    assert not outcome.ended_well
    assert gate.sound.requests == []
    assert outcome.attempts == [("faulty", code)]
    assert outcome.tokens == [(0, 1)]
    assert (outcome.record.status, outcome.record.error_code) == (502, code)
    assert (outcome.record.completion_tokens, outcome.record.cost) == (1, Decimal("0.000008"))
    if name == "hang mid-stream":
        assert gate.faulty.left.wait(5)


@STREAMED
@pytest.mark.parametrize("name", NOT_THERE)
def test_an_endpoint_that_is_not_there(gate: Gate, tls_endpoint: FaultyEndpoint, name: str, stream: bool) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # Bound and not listening: connections are refused.
        address = {
            "no name": "http://no-such-endpoint.invalid/v1",
            "no port": f"http://127.0.0.1:{unused.getsockname()[1]}/v1",
            "tls": tls_endpoint.url,
            "tls to http": gate.faulty.url.replace("http:", "https:"),
        }[name]
        gate.open(address)
        alone, pair = gate.ask("alone", stream=stream), gate.ask("pair", stream=stream)
    assert (alone.status, alone.error) == (502, NOT_THERE[name])
    assert alone.tokens == [(0, 0)]
    assert (pair.status, pair.text, pair.ended_well) == (200, "Hello", True)
    assert pair.attempts == [("faulty", NOT_THERE[name]), ("sound", None)]
    assert tls_endpoint.requests == []


def test_a_retry_after_holds_for_everybody(gate: Gate) -> None:
    gate.faulty.fault = faulty.status("429 Too Many Requests", retry_after="30")
    for _ in range(3):
        assert gate.ask("pair", stream=False).text == "Hello"
    assert (len(gate.faulty.requests), len(gate.sound.requests)) == (1, 3)
    outcome = gate.ask("alone", stream=True)
    assert (outcome.status, outcome.error, len(gate.faulty.requests)) == (429, "upstream_rate_limit", 1)
    assert outcome.headers["retry-after"] == "30"


def test_a_passing_failure_is_tried_again(gate: Gate) -> None:
    turns = iter([faulty.status("500 Internal Server Error"), faulty.good])

    async def once(endpoint: FaultyEndpoint, writer: Any) -> None:
        await next(turns)(endpoint, writer)

    gate.faulty.fault = once
    outcome = gate.ask("patient", stream=False)
    assert (outcome.text, outcome.attempts) == ("Hello", [("faulty", "upstream_error"), ("faulty", None)])
    assert (outcome.record.completion_tokens, outcome.record.cost) == (2, ANSWER_COST)


@STREAMED
def test_a_hedge_stops_the_slower_connection_and_both_prompts_are_paid(gate: Gate, stream: bool) -> None:
    gate.faulty.fault = faulty.hang_before_content
    route = gate.server.gateway.models["hedged"]
    assert isinstance(route, Route)
    for _ in range(ENOUGH):
        route.deployments[0].latency.measure_first_token(0.01)
    outcome = gate.ask("hedged", stream=stream)
    assert (outcome.status, outcome.text, outcome.ended_well) == (200, "Hello", True)
    assert sorted(outcome.attempts) == [("faulty", "cancelled"), ("sound", None)]
    assert gate.faulty.left.wait(5)
    (prompt,) = {attempt.prompt_tokens for attempt in outcome.journey.attempts}
    assert prompt == 11
    assert (outcome.record.prompt_tokens, outcome.record.cost) == (11, ANSWER_COST + Decimal("0.000022"))


def test_a_slow_client_gets_all_of_it_once(gate: Gate) -> None:
    """More than socket buffers hold, so that the gateway has to wait for its reader."""
    pieces, text = 600, "0123456789" * 400
    gate.faulty.fault = faulty.long_answer(pieces, text)
    gate.open(gate.faulty.url)
    body = {"model": "faulty", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    got = 0
    with gate.client.stream("POST", CHAT, json=body) as answer:
        for number, line in enumerate(answer.iter_lines()):
            if number == 2:
                gate.server.call(_breathe())
            got += line.count("0123456789")
    assert got == pieces * 400
    (row,) = gate.server.call(gate.server.ledger.list(search=answer.headers["x-request-id"]))
    assert (row.status, row.completion_tokens, row.client_disconnected) == (200, 2, False)


async def _breathe() -> None:
    import asyncio

    await asyncio.sleep(0.1)


def test_a_client_that_leaves_ends_the_work_and_is_recorded_as_gone(gate: Gate) -> None:
    gate.faulty.fault = faulty.hang_mid_stream
    body = {"model": "pair", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    with gate.client.stream("POST", CHAT, json=body, headers={"x-request-id": "gone"}) as answer:
        next(answer.iter_lines())
    assert gate.faulty.left.wait(5)
    row = gate.server.wait_for_record("gone")
    assert (row.status, row.client_disconnected, row.cost) == (499, True, Decimal("0.000008"))
    (attempt,) = gate.journeys[row.request_id].attempts
    assert (attempt.error_code, attempt.completion_tokens) == ("cancelled", 1)
    assert gate.sound.requests == []


def test_setting_the_clock_changes_no_wait_and_no_duration(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = iter([datetime.timedelta(days=400), datetime.timedelta(days=-400), datetime.timedelta(0)])

    class Jumping(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return datetime.datetime.now(tz) + next(jumps)

    gate.open(gate.faulty.url, time.monotonic)
    monkeypatch.setattr("wootz.telemetry.observe.datetime", Jumping)
    monkeypatch.setattr("time.time", lambda: -1e9)
    gate.faulty.fault = faulty.status("429 Too Many Requests", retry_after="300")
    outcomes = [gate.ask("pair", stream=False) for _ in range(3)]
    assert [outcome.text for outcome in outcomes] == ["Hello"] * 3
    assert len(gate.faulty.requests) == 1
    for outcome in outcomes:
        assert 0 <= outcome.record.duration < 24 * 3600
        assert all(0 <= one.start <= (one.end or 0.0) for one in outcome.journey.attempts)


def test_administrators_see_how_each_deployment_does(gate: Gate) -> None:
    gate.faulty.fault = faulty.status("500 Internal Server Error")
    for _ in range(6):
        gate.ask("pair", stream=False)
    assert gate.client.get("/admin/routes").status_code == 403
    admin = {"authorization": f"Bearer {gate.server.admin_key}"}
    states = {state["name"]: state for state in gate.client.get("/admin/routes", headers=admin).json()["data"]}
    sick, sound = states["pair"]["deployments"]
    assert (sick["breaker"], sick["last_error"], sick["in_flight"]) == ("open", "upstream_error", 0)
    assert sick["available_in"] == 10
    assert (sound["breaker"], sound["last_error"]) == ("closed", None)
    assert sound["first_token"] > 0
    assert states["alone"]["deployments"][0]["breaker"] == "open"  # It is the same deployment.
    ready = gate.client.get("/readyz")
    assert (ready.status_code, ready.json()["waiting_for"]) == (200, [])  # No endpoint's failure takes a replica away.


@pytest.fixture(scope="module")
def tls_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyEndpoint]:
    """An endpoint whose certificate nobody vouches for."""
    folder = tmp_path_factory.mktemp("tls")
    with FaultyEndpoint(_self_signed(folder)) as endpoint:
        yield endpoint


def _self_signed(folder: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(datetime.datetime(2020, 1, 1)).not_valid_after(datetime.datetime(2120, 1, 1))
    certificate = builder.sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "pair.pem").write_bytes(private + certificate.public_bytes(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "pair.pem")
    return context
