"""What a tenant who means harm tries over the wire, and what a far end that was taken over says.

Others are beside what they attack: poisoned caches and smuggled fields (`tests/caches/test_exact.py`), names that are
paths and bombs in files (`test_batches.py`), nested and oversized bodies (`test_bad_requests.py`), redirects,
compressed and endless answers (`tests/providers/test_http.py`), other people's tasks (`test_dashscope_tasks.py`).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import openai as fake
from fakes.far_end import SECRET
from fastapi.responses import JSONResponse, StreamingResponse
from serving import ASK, CHAT, GatewayServer, ScriptedModel

from wootz.app import bounded_http
from wootz.core import Config
from wootz.providers import open_models

BODY = json.dumps(ASK).encode()


def talk(server: GatewayServer, raw: bytes) -> bytes:
    """What comes back for these bytes, until the server closes or has nothing more to say."""
    host, port = server.url.removeprefix("http://").split(":")
    said = b""
    with socket.create_connection((host, int(port)), timeout=20) as connection, suppress(OSError):
        with suppress(OSError):  # It may hang up before it has read all.
            connection.sendall(raw)
        while piece := connection.recv(65536):
            said += piece
            connection.settimeout(0.3)
    return said


def head(server: GatewayServer, *lines: str, method: str = "POST", path: str = CHAT) -> bytes:
    first = [f"{method} {path} HTTP/1.1", "Host: gateway", f"Authorization: Bearer {server.key}"]
    return "\r\n".join([*first, "Content-Type: application/json", *lines]).encode() + b"\r\n\r\n"


def statuses(said: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", said)]


def chunked(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


# --- one request, or two? -----------------------------------------------------------------------------------------

SMUGGLED = b"GET /healthz HTTP/1.1\r\nHost: gateway\r\n\r\n"


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: {length}", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked", "Content-Length: {length}"],
        ["Content-Length: {length}", "Content-Length: 5"],
        ["Content-Length: {length}, {length}"],
        ["Content-Length: +{length}"],
        ["Content-Length: -5"],
        ["Content-Length: {length}", "Transfer-Encoding: xchunked"],
        ["Content-Length: {length}", "Transfer-Encoding : chunked"],
        ["Content-Length: {length}", "Transfer-Encoding: chunked, identity"],
        ["Transfer-Encoding: identity, chunked", "Content-Length: {length}"],
        ["Content-Length: {length}", "X: a\n Transfer-Encoding: chunked"],
        ["Content-Length: {length}\x00"],
        ["Content-Length : {length}"],
        ["Content-Length: {length}", "Bad\x01Name: x"],
    ],
)
def test_a_length_that_can_be_read_in_two_ways_serves_nothing_behind_it(
    server: GatewayServer, model: ScriptedModel, lines: list[str]
) -> None:
    """A proxy in front may have read the other length, and what is left over would be another user's request."""
    lines = [line.format(length=len(BODY)) for line in lines]
    body = chunked(BODY) if any("chunked" in line for line in lines) else BODY
    said = talk(server, head(server, *lines) + body + SMUGGLED)
    assert len(statuses(said)) == 1, said
    assert statuses(said)[0] in (200, 400)
    if statuses(said) == [200]:
        assert [asked.messages[0].text for asked in model.asked] == ["hi"]  # type: ignore[attr-defined]
    else:
        assert model.asked == []


def test_headers_without_end_are_refused(server: GatewayServer) -> None:
    """The parser would take any number; 4 MB here, each way."""
    start = head(server, method="GET", path="/v1/models")[:-2]
    for flood in (b"x: " + b"a" * 2**22, b"".join(b"x%d: y\r\n" % number for number in range(300_000))):
        assert statuses(talk(server, start + flood + b"\r\n\r\n")) in ([], [400])
    assert statuses(talk(server, start + b"x: " + b"a" * 2**15 + b"\r\n\r\n")) == [200]


def test_a_head_that_does_not_come_is_not_waited_for(server: GatewayServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_http, "HEAD_SECONDS", 0.2)
    whole = head(server, method="GET", path="/v1/models")
    assert talk(server, b"") == talk(server, whole[:40]) == b""
    assert statuses(talk(server, whole + whole[:40])) == [200]


def test_two_keys_at_once_are_refused(server: GatewayServer, model: ScriptedModel) -> None:
    """A filter in front may have looked at the other one."""
    second = f"Authorization: Bearer {server.admin_key}"
    said = talk(server, head(server, second, f"Content-Length: {len(BODY)}", "Connection: close") + BODY)
    assert statuses(said) == [401]
    assert model.asked == []


# --- what goes on, and what comes back ----------------------------------------------------------------------------


class Canary:
    """A socket that nobody may connect to."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.visits = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.visits += 1
            connection.close()

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def canary() -> Iterator[Canary]:
    canary = Canary()
    yield canary
    canary.close()


@pytest.fixture
def far_end() -> Iterator[fake.OpenAI]:
    with fake.OpenAI() as end:
        yield end


@pytest.fixture(autouse=True)
def as_before(gateway_server: GatewayServer) -> Iterator[None]:
    models = gateway_server.gateway.models
    yield
    gateway_server.gateway.models = models


def _open(server: GatewayServer, config: Config) -> None:
    async def open_them() -> None:
        server.gateway.models = open_models(config, {})

    server.call(open_them())


@pytest.fixture
def remote(server: GatewayServer, far_end: fake.OpenAI, tmp_path: Path) -> fake.OpenAI:
    """The gateway has a model "far" at the far end; its key is in a file."""
    (tmp_path / "key").write_text(SECRET)
    account = {"base_url": f"{far_end.url}/vllm/v1", "api_key": f"file:{tmp_path / 'key'}"}
    config = Config.model_validate({"home": tmp_path, "models": {"far": account}})

    _open(server, config)
    far_end.answer = hello()
    return far_end


def hello() -> list[Any]:
    said = {"index": 0, "delta": {"role": "assistant", "content": "Hello"}, "finish_reason": None}
    end = {"index": 0, "delta": {}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return [fake.chunk(said), fake.chunk(end), fake.chunk(usage=usage), "[DONE]"]


HOSTILE_HEADERS = {
    "x-wootz-cache": "exact", "x-wootz-model": "dear", "x-forwarded-for": "127.0.0.1", "x-real-ip": "127.0.0.1",
    "forwarded": "for=127.0.0.1", "x-api-key": "theirs", "api-key": "theirs", "cookie": "session=theirs",
    "openai-organization": "theirs", "x-dashscope-workspace": "theirs", "anthropic-beta": "theirs", "te": "trailers",
    "proxy-authorization": "Basic dGhlaXJz", "upgrade": "h2c", "x-custom": "theirs",
}  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
def test_no_header_of_a_tenant_reaches_a_provider(http: httpx.Client, remote: fake.OpenAI, stream: bool) -> None:
    answer = http.post(CHAT, json=ASK | {"model": "far", "stream": stream}, headers=HOSTILE_HEADERS)
    assert answer.status_code == 200
    assert remote.headers["authorization"] == f"Bearer {SECRET}"
    assert "theirs" not in str(remote.headers)
    known = {"host", "accept", "accept-encoding", "user-agent", "authorization", "content-type", "content-length"}
    assert set(remote.headers) <= known
    assert "x-wootz-cache" not in answer.headers


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [200, 400])
def test_no_header_of_a_provider_reaches_a_tenant(
    http: httpx.Client, remote: fake.OpenAI, stream: bool, status: int
) -> None:
    said = HOSTILE_HEADERS | {
        "set-cookie": "a=theirs", "location": "http://theirs/", "x-request-id": "theirs", "retry-after": "0",
        "x-ratelimit-remaining-requests": "theirs", "access-control-allow-origin": "*", "server": "theirs",
        "openai-processing-ms": "5", "strict-transport-security": "theirs",
    }  # fmt: skip
    del said["upgrade"], said["te"]
    if status == 200:
        remote.answer = StreamingResponse(remote.encode(hello()), media_type="text/event-stream", headers=said)
    else:
        remote.answer = JSONResponse({"error": {"message": "no"}}, status, said)
    answer = http.post(CHAT, json=ASK | {"model": "far", "stream": stream})
    assert answer.status_code == status
    assert "theirs" not in str(answer.headers)
    assert not {"set-cookie", "location", "access-control-allow-origin", "x-wootz-cache"} & set(answer.headers)


def test_no_address_or_key_in_a_body_leads_anywhere_else(
    http: httpx.Client, remote: fake.OpenAI, canary: Canary
) -> None:
    url = f"http://127.0.0.1:{canary.port}/v1"
    fields = dict.fromkeys(("base_url", "api_base", "endpoint", "proxy", "webhook", "callback", "host"), url)
    extra = {"api_key": "theirs", "extra_headers": {"authorization": "Bearer theirs"}, "headers": {"host": url}}
    answer = http.post(CHAT, json=ASK | {"model": "far"} | fields | extra)
    assert answer.status_code == 200
    assert remote.headers["authorization"] == f"Bearer {SECRET}"
    assert (len(remote.asked), canary.visits) == (1, 0)


@pytest.mark.parametrize("kind", ["openai", "anthropic", "gemini", "dashscope", "deepseek", "ollama"])
def test_nobody_fetches_an_address_that_a_tenant_sends(
    server: GatewayServer, http: httpx.Client, far_end: fake.OpenAI, canary: Canary, tmp_path: Path, kind: str
) -> None:
    """Pictures and files by address go on to the provider, who fetches them from its own network, or are refused."""
    (tmp_path / "key").write_text(SECRET)
    account = {"kind": kind, "base_url": f"{far_end.url}/x", "api_key": f"file:{tmp_path / 'key'}"}
    models = {"far": {"provider": "there"}}
    config = Config.model_validate({"home": tmp_path, "providers": {"there": account}, "models": models})

    _open(server, config)
    for url in (f"http://127.0.0.1:{canary.port}/a.png", f"http://localhost:{canary.port}/a.png", "file:///etc/passwd"):
        part: dict[str, Any]
        for part in (
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "video_url", "video_url": {"url": url}},
            {"type": "file", "file": {"file_data": url, "filename": "a"}},
            {"type": "file", "file": {"file_id": "../../etc/passwd"}},
        ):
            content = [{"type": "text", "text": "look"}, part]
            answer = http.post(CHAT, json={"model": "far", "messages": [{"role": "user", "content": content}]})
            assert answer.status_code in (200, 400, 502), answer.text
            assert "root:" not in answer.text
            assert "root:" not in json.dumps(far_end.asked)
    assert canary.visits == 0


# --- paths --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/../../admin/keys", "/v1/%2e%2e/admin/keys", "//admin/keys", "/admin//keys", "/admin/keys/",
        "/ADMIN/keys", "/admin%2fkeys", "/admin/keys%00", "/admin/keys;x", "/admin/./keys", "/v1/models/%00",
        "/v1/models/..%2f..%2fadmin", "/v1/files/..%2f..%2fwootz.db/content", "/v1/files/%2e%2e/content",
        "/v1/batches/..%2f..", "/static/..%2f..%2fsite.py", "/static/../site.py", "http://127.0.0.1/admin/keys",
        "*", "/v1/responses/..%2f..%2fadmin%2fkeys", "/api/v1/tasks/..%2f..", "/%ff%fe",
        "/v1/models/" + "a" * 5000,
    ],
)  # fmt: skip
def test_no_way_of_writing_a_path_leads_to_what_is_anothers(server: GatewayServer, path: str) -> None:
    said = talk(server, head(server, "Connection: close", method="GET", path=path))
    assert statuses(said), said
    assert statuses(said)[0] in (400, 401, 403, 404, 405, 307), said
    assert b"sk-wootz" not in said
    assert b"Traceback" not in said


# --- bodies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip"])
def test_a_compressed_body_is_not_unpacked(http: httpx.Client, model: ScriptedModel, encoding: str) -> None:
    """A kilobyte can unpack to a gigabyte; the limit on bodies is on what is read."""
    bomb = gzip.compress(b" " * 2**24 + BODY)
    headers = {"content-encoding": encoding, "content-type": "application/json"}
    answer = http.post(CHAT, content=bomb, headers=headers)
    assert answer.status_code in (400, 415)
    assert model.asked == []


def test_a_form_of_very_many_parts_is_refused(http: httpx.Client) -> None:
    files = [("file", (f"{number}", b"x")) for number in range(1200)]
    answer = http.post("/v1/files", files=files, data={"purpose": "batch"})
    assert answer.status_code == 400


def test_wide_bodies_cost_no_more_than_their_bytes(http: httpx.Client) -> None:
    for field in (
        {"stop": ["x"] * 3000},
        {"logit_bias": {str(number): 1 for number in range(3000)}},
        {"tools": [{"type": "function", "function": {"name": f"f{number}"}} for number in range(600)]},
        {"metadata": {f"k{number}": "v" for number in range(2000)}},
    ):
        assert http.post(CHAT, json=ASK | field).status_code in (200, 400)


# --- keys ---------------------------------------------------------------------------------------------------------


def test_what_is_anothers_and_what_is_not_there_are_told_in_the_same_words(server: GatewayServer) -> None:
    def client(name: str) -> httpx.Client:
        _, token = server.call(server.keys.create(name))
        return httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {token}"}, timeout=30)

    with client("enum-owner") as owner, client("enum-thief") as thief:
        line = json.dumps({"custom_id": "1", "method": "POST", "url": CHAT, "body": ASK})
        file = owner.post("/v1/files", files={"file": ("a.jsonl", line)}, data={"purpose": "batch"}).json()["id"]
        batch = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
        batch_id = owner.post("/v1/batches", json=batch).json()["id"]
        response_id = owner.post("/v1/responses", json={"model": "scripted", "input": "hi"}).json()["id"]
        for path, mine in (("files", file), ("batches", batch_id), ("responses", response_id)):
            missing = re.sub(r"[0-9a-f]", "0", mine)
            for method, tail in (
                ("GET", ""),
                ("DELETE" if path != "batches" else "POST", "/cancel" * (path == "batches")),
            ):
                theirs = thief.request(method, f"/v1/{path}/{mine}{tail}")
                nobodys = thief.request(method, f"/v1/{path}/{missing}{tail}")
                assert theirs.status_code == nobodys.status_code == 404
                assert theirs.text.replace(mine, "ID") == nobodys.text.replace(missing, "ID")
            assert owner.get(f"/v1/{path}/{mine}").status_code == 200
        stolen = thief.post("/v1/batches", json=batch)
        assert stolen.status_code in (400, 404)
        for name in ("enum-owner", "nobody-at-all"):
            refused = thief.get(f"/admin/keys/{name}")
            assert refused.status_code in (403, 404, 405)
            assert thief.delete(f"/admin/keys/{name}").status_code == 403


def test_a_key_is_compared_by_its_hash_only(server: GatewayServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """So how far a guess is right changes nothing that could be timed: the look-up sees a hash, and a wrong guess takes
    the same way whether it is nearly right or not at all."""
    looked_up: list[str] = []
    find = server.keys.cache._find

    async def spy(digests: Sequence[str]) -> Any:
        looked_up.extend(digests)
        return await find(digests)

    monkeypatch.setattr(server.keys.cache, "_find", spy)
    server.keys.cache.clear()
    near, far = server.key[:-1] + ("a" if server.key[-1] != "a" else "b"), "sk-wootz-" + "x" * 43
    for token in (server.key, near, far):
        httpx.get(f"{server.url}/v1/models", headers={"authorization": f"Bearer {token}"})
    assert looked_up == [hashlib.sha256(token.encode()).hexdigest() for token in (server.key, near, far)]
