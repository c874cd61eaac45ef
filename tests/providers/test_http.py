"""Everything that can go wrong between us and an endpoint, on real sockets: each one error with a code of its own."""

from __future__ import annotations

import asyncio
import gzip
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from raw_server import raw_server

from wootz.core import RateLimitError, UpstreamError, WootzError
from wootz.core.wire import ChatChunk, ChatRequest, EmbeddingRequest
from wootz.providers import Endpoint, OpenAICompatibleModel, Timeouts, http, sse
from wootz.providers.upstream_errors import seconds_to_wait

EVENT = b'data: {"id":"x","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
LAST = EVENT.replace(b'{"content":"a"}', b'{},"finish_reason":"stop"') + b"data: [DONE]\n\n"
OK = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: text/event-stream\r\n"

Handler = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(
    handler: Handler, tls: ssl.SSLContext | None = None, end: bytes = b"\r\n\r\n"
) -> AsyncGenerator[str, None]:
    """The address of a server that leaves what it answers, to the byte, to the handler, which gets the request's head:
    all that comes before ``end``."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await handler(await reader.readuntil(end), writer)

    async with raw_server(talk, tls) as port:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}/v1"


def says(*pieces: bytes) -> Handler:
    async def handler(_head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.writelines(pieces)

    return handler


async def chunks_of(base_url: str, **timeouts: float) -> list[ChatChunk]:
    model = OpenAICompatibleModel(Endpoint("ours", base_url, "sk-key", timeouts=Timeouts(**timeouts)))
    request = ChatRequest.model_validate(
        {"model": "ours", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    )
    try:
        return [chunk async for chunk in model.chat(request)]
    finally:
        await model.close()


async def failure_of(base_url: str, **timeouts: float) -> UpstreamError:
    with pytest.raises(UpstreamError) as failure:
        await chunks_of(base_url, **timeouts)
    assert "sk-key" not in str(failure.value)
    assert failure.value.status == 502
    return failure.value


async def test_what_a_good_server_says() -> None:
    async with server(says(OK, b"\r\n", EVENT, LAST)) as url:
        assert len(await chunks_of(url)) == 3


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "upstream_malformed"),
        (b"", "upstream_cut_off"),
        (OK, "upstream_cut_off"),
        (OK + b"content-length: 5000\r\n\r\n" + EVENT, "upstream_cut_off"),
        (OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n", "upstream_malformed"),
        (OK.replace(b"event-stream", b"html") + b"\r\n<html>Sign in to the network</html>", "upstream_content_type"),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\ndata: x\n\n", "upstream_content_type"),
        (b"HTTP/1.1 307 Go\r\nlocation: /v1/elsewhere\r\ncontent-length: 0\r\n\r\n", "upstream_redirect"),
        (OK + b"content-encoding: gzip\r\n\r\n" + gzip.compress(bytes(10**6)), "upstream_compressed"),
        (OK.replace(b"200 OK", b"500 No") + b"content-encoding: br\r\n\r\nxxx", "upstream_compressed"),
        (OK + b"\r\n" + b"data: \xff\xfe\n\n", "upstream_malformed"),
    ],
    ids=["no HTTP", "nothing", "half a head", "half a body", "broken chunks", "a sign-in page", "no type", "redirect",
         "bomb", "compressed error", "no text"],
)  # fmt: skip
async def test_what_is_no_answer(answer: bytes, code: str) -> None:
    async with server(says(answer)) as url:
        assert (await failure_of(url)).code == code


async def test_an_event_that_is_none_after_text_that_is_none() -> None:
    """Each is one event's fault; what is told is the endpoint's, whichever is looked at first."""

    async def handler(_head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"\r\n" + EVENT)
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(EVENT.replace(b'"x"', b"null") + b"data: nonsense\n\n")

    async with server(handler) as url:
        assert (await failure_of(url)).code == "upstream_malformed"


async def test_a_redirect_is_not_followed() -> None:
    asked: list[bytes] = []

    async def handler(head: bytes, writer: asyncio.StreamWriter) -> None:
        asked.append(head.split(b" ")[1])
        writer.write(b"HTTP/1.1 302 Go\r\nlocation: /v1/elsewhere\r\ncontent-length: 0\r\n\r\n")

    async with server(handler) as url:
        await failure_of(url)
    assert asked == [b"/v1/chat/completions"]


async def test_nothing_is_read_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_LINE_BYTES", 100_000)
    monkeypatch.setattr(http, "MAX_BODY_BYTES", 100_000)

    def without_end(head: bytes) -> Handler:
        async def handler(_head: bytes, writer: asyncio.StreamWriter) -> None:
            writer.write(head + b"\r\n")
            while True:
                writer.write(b"x" * 10_000)
                await writer.drain()

        return handler

    async with server(without_end(OK)) as url:
        assert (await failure_of(url)).code == "upstream_malformed"
    async with server(without_end(OK.replace(b"text/event-stream", b"application/json"))) as url:
        model = OpenAICompatibleModel(Endpoint("ours", url))
        with pytest.raises(UpstreamError) as failure:
            await model.embed(EmbeddingRequest(model="ours", input="hi"))
        assert failure.value.code == "upstream_too_large"
        await model.close()


async def test_no_such_host() -> None:
    assert (await failure_of("http://no-such-host.invalid/v1")).code == "upstream_unknown_host"


async def test_no_such_port() -> None:
    assert (await failure_of("http://127.0.0.1:9/v1")).code == "upstream_unreachable"


@pytest.fixture(scope="module")
def self_signed(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """A server's context whose certificate nobody vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    begins = datetime.now(UTC) - timedelta(days=1)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(begins).not_valid_after(begins + timedelta(days=9))
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    file: Path = tmp_path_factory.mktemp("tls") / "both.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


async def test_a_certificate_that_nobody_vouches_for(self_signed: ssl.SSLContext) -> None:
    async with server(says(OK, b"\r\n", EVENT), tls=self_signed) as url:
        assert (await failure_of(url)).code == "upstream_tls"


async def test_a_server_that_does_not_speak_tls() -> None:
    async with server(says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), end=b"\x16\x03") as url:
        assert (await failure_of(url.replace("http:", "https:"))).code == "upstream_tls"


# --- time --------------------------------------------------------------------------------------------------------


async def hang(_head: bytes, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def only_comments(_head: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(OK + b"\r\n")
    while True:
        writer.write(b": keep-alive\n\n")
        await writer.drain()
        await asyncio.sleep(0.02)


async def drips(_head: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(OK + b"\r\n")
    while True:
        writer.write(EVENT)
        await writer.drain()
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("handler", "timeouts", "what"),
    [
        (hang, {"silence": 0.1}, "fell silent"),
        (hang, {"first_token": 0.1}, "first token took too long"),
        (only_comments, {"first_token": 0.1}, "first token took too long"),
        (only_comments, {"total": 0.1}, "answer took too long"),
        (drips, {"total": 0.1, "first_token": 5}, "answer took too long"),
        (drips, {"total": 0.1}, "answer took too long"),
    ],
)
async def test_time_runs_out(handler: Handler, timeouts: dict[str, float], what: str) -> None:
    async with server(handler) as url:
        failure = await failure_of(url, **timeouts)
    assert failure.code == "upstream_timeout"
    assert what in str(failure)


async def test_time_that_a_slow_reader_takes_is_not_the_endpoints() -> None:
    """The first token came in time; how long the caller does other things with it is not measured as its coming."""
    async with server(says(OK, b"\r\n", EVENT, LAST)) as url:
        model = OpenAICompatibleModel(Endpoint("ours", url, timeouts=Timeouts(first_token=0.3)))
        request = ChatRequest.model_validate(
            {"model": "ours", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
        )
        chunks = model.chat(request)
        await anext(chunks)
        await asyncio.sleep(0.4)
        assert len([chunk async for chunk in chunks]) == 2
        await model.close()


# --- what is not kept, and what is heeded ------------------------------------------------------------------------


async def test_cookies_are_not_kept() -> None:
    heads: list[bytes] = []

    async def handler(head: bytes, writer: asyncio.StreamWriter) -> None:
        heads.append(head.lower())
        writer.writelines([OK, b"set-cookie: session=of-another-tenant\r\n\r\n", EVENT, LAST])

    async with server(handler) as url:
        model = OpenAICompatibleModel(Endpoint("ours", url, "sk-key", headers={"x-workspace": "w1"}))
        request = ChatRequest.model_validate(
            {"model": "ours", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
        )
        for _ in range(2):
            assert [chunk async for chunk in model.chat(request)]
        await model.close()
    assert [b"cookie" in head for head in heads] == [False, False]
    assert all(b"x-workspace: w1" in head and b"accept-encoding: identity" in head for head in heads)


async def test_the_environments_proxy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, heads = list[bytes](), list[bytes]()

    async def handler(head: bytes, writer: asyncio.StreamWriter) -> None:
        heads.append(head)
        asked.append(head.split(b" ")[1])
        writer.writelines([OK, b"\r\n", EVENT, LAST])

    async with server(handler) as url:
        monkeypatch.setenv("http_proxy", url.removesuffix("/v1"))
        await chunks_of("http://far.invalid/v1")
        assert asked == [b"http://far.invalid/v1/chat/completions"]
        monkeypatch.setenv("http_proxy", url.removesuffix("/v1").replace("//", "//me:p%40ss@"))
        await chunks_of("http://far.invalid/v1")
        assert [b"proxy-authorization: basic bwu6cebzcw==\r\n" in head.lower() for head in heads] == [False, True]
        monkeypatch.setenv("no_proxy", "far.invalid")
        assert (await failure_of("http://far.invalid/v1")).code == "upstream_unknown_host"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7), (" 2.5 ", 2.5), ("0", None), ("soon", None), ("-3", None), ("nan", None), (None, None), ("", None),
     ("Wed, 21 Oct 2015 07:28:00 GMT", None), ("Wed, 99 Oct 2015", None), ("999999999", 86400)],
)  # fmt: skip
def test_retry_after_as_seconds(header: str | None, seconds: float | None) -> None:
    assert seconds_to_wait(header) == seconds


def test_retry_after_as_a_date() -> None:
    then = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 97 < (seconds_to_wait(then) or 0) <= 100


@pytest.mark.parametrize(
    ("status", "error_type", "seconds"), [(429, RateLimitError, 7), (503, UpstreamError, 7), (529, UpstreamError, 7)]
)
async def test_a_refusal_says_when_to_come_back(status: int, error_type: type[WootzError], seconds: float) -> None:
    head = f"HTTP/1.1 {status} No\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n".encode()
    async with server(says(head)) as url:
        with pytest.raises(error_type) as failure:
            await chunks_of(url)
    error: Any = failure.value
    assert (error.retry_after, error.retryable) == (seconds, True)


async def test_an_exhausted_account_is_no_limit_that_waiting_mends() -> None:
    body = b'{"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}'
    async with server(says(b"HTTP/1.1 429 No\r\ncontent-length: %d\r\n\r\n" % len(body), body)) as url:
        failure = await failure_of(url)
    assert (failure.code, "quota" in str(failure)) == ("upstream_refused", False)
