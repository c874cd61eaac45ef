"""HTTP/1.1 as a client, against servers that say what they say to the byte."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_server import Talk, raw_server

from wootz.core import ConfigError, UpstreamError
from wootz.providers import Endpoint, Timeouts, connection, reaching
from wootz.providers import http as asking
from wootz.providers.http import Http

JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
WHOLE = JSON + b"content-length: 2\r\n\r\n{}"


async def head_of(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    if b"content-length: " in head:
        await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]))
    return head


def answering(*answers: bytes) -> Talk:
    """Each of them to one request after another on the same connection."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await head_of(reader)
            writer.write(answer)
        await reader.read()

    return talk


def http_to(port: int, **timeouts: float) -> Http:
    return Http(Endpoint("ours", f"http://127.0.0.1:{port}/v1", "sk-key", timeouts=Timeouts(**timeouts)))


async def asked(*answers: bytes) -> list[bytes]:
    """What one connection's answers are read as."""
    async with raw_server(answering(*answers)) as port:
        http = http_to(port)
        read = [await http.json("chat", {"n": n}) for n in range(len(answers))]
        await http.close()
        return read


CHUNKED = JSON + b"transfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        JSON + b"content-length: 4\r\n\r\n[1,2",
        CHUNKED + b"1\r\n[\r\n3;a=b\r\n1,2\r\n0\r\n\r\n",
        CHUNKED + b"4\r\n[1,2\r\n0\r\nContent-Type: text/html\r\nX-Trailer: 1\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nlink: x\r\n\r\n" + CHUNKED + b"4\r\n[1,2\r\n0\r\n\r\n",
        JSON.replace(b"content-type: app", b"Content-TYPE:  APP").replace(b"json", b"JSON ; charset=utf-8")
        + b"Content-Length: 4\r\n\r\n[1,2",
    ],
    ids=["a length", "chunks", "trailers", "not yet", "spelled otherwise"],
)  # fmt: skip
async def test_however_it_is_said_it_is_the_same_and_the_connection_serves_again(answer: bytes) -> None:
    assert await asked(answer, answer, WHOLE) == [b"[1,2", b"[1,2", b"{}"]


async def test_what_ends_with_the_connection_is_whole() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(JSON + b"\r\n[1,")
        await writer.drain()
        writer.write(b"2")

    async with raw_server(talk) as port:
        http = http_to(port)
        assert [await http.json("chat", {}) for _ in range(2)] == [b"[1,2", b"[1,2"]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=50), max_size=5), st.data())
def test_pieces_cut_anywhere_are_one_body(parts: list[bytes], data: st.DataObject) -> None:
    whole = CHUNKED + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    cuts = sorted(data.draw(st.sets(st.integers(1, len(whole) - 1), max_size=8)))
    pieces = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]

    class Transport:
        def write(self, _data: bytes) -> None: ...

        def is_closing(self) -> bool:
            return False

    async def run() -> bytes:
        one = connection.Connection()
        one.connection_made(Transport())  # type: ignore[arg-type]
        asking = asyncio.create_task(one.ask(b"", 1))
        await asyncio.sleep(0)
        for piece in pieces:
            one.data_received(piece)
        body = await (await asking).body(10**6)
        assert one.may_serve_again()
        return body

    assert asyncio.run(run()) == b"".join(parts)


@pytest.mark.parametrize(
    "first",
    [WHOLE + WHOLE, WHOLE + b"\0", WHOLE.replace(b"content-type", b"connection: close\r\ncontent-type"),
     WHOLE.replace(b"1.1", b"1.0")],
    ids=["two answers", "rubbish behind it", "close", "HTTP/1.0"],
)  # fmt: skip
async def test_a_connection_that_may_be_out_of_step_is_not_used_again(first: bytes) -> None:
    """Else what a server says too much would be read as the next user's answer."""
    connections = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await answering(first, WHOLE)(reader, writer)

    async with raw_server(talk) as port:
        http = http_to(port)
        assert [await http.json("chat", {}) for _ in range(2)] == [b"{}", b"{}"]
        await http.close()
    assert connections == 2


async def test_a_connection_on_which_the_server_speaks_unasked_is_closed() -> None:
    closed = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(WHOLE)
        await writer.drain()
        if not closed.is_set():
            await asyncio.sleep(0.02)
            writer.write(WHOLE.replace(b"{}", b"[]"))
        await reader.read()
        closed.set()

    async with raw_server(talk) as port:
        http = http_to(port)
        assert await http.json("chat", {}) == b"{}"
        await closed.wait()
        assert await http.json("chat", {}) == b"{}"
        await http.close()


async def test_a_connection_is_left_before_the_server_would_leave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(asking.IDLE_SECONDS, "http", 0.01)
    left = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(WHOLE)
        assert await reader.read() == b""
        left.set()

    async with raw_server(talk) as port:
        http = http_to(port)
        assert await http.json("chat", {}) == b"{}"
        await left.wait()
        assert await http.json("chat", {}) == b"{}"
        await http.close()


async def test_what_changes_nothing_is_asked_anew_where_the_server_leaves_as_it_is_asked() -> None:
    heads: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await head_of(reader))
        writer.write(WHOLE)
        heads.append(await head_of(reader))  # And says nothing to it, as if it had closed just before.

    async with raw_server(talk) as port:
        http = http_to(port)
        assert [await http.json("tasks/1", method="GET") for _ in range(2)] == [b"{}", b"{}"]
        assert len(heads) == 3
        with pytest.raises(UpstreamError) as failure:
            await http.json("chat", {})
        await http.close()
    assert failure.value.code == "upstream_cut_off"
    assert len(heads) == 4


@pytest.mark.parametrize(
    "endless",
    [JSON + b"x: ", CHUNKED + b"1\r\n[\r\n0\r\nx-trailer: ", CHUNKED + b"1;"],
    ids=["a head", "trailers", "an extension of a chunk"],
)
async def test_nothing_but_content_may_go_on_and_on(endless: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(endless)
        while True:
            writer.write(b"x" * 10_000)
            await writer.drain()

    async with raw_server(talk) as port:
        http = http_to(port, silence=5)
        with pytest.raises(UpstreamError) as failure:
            await http.json("chat", {})
        assert failure.value.code == "upstream_malformed"


async def test_nobody_is_sent_more_than_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_WAITING_BYTES", 10_000)
    num_sent = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_sent
        await head_of(reader)
        writer.write(JSON + b"content-length: 50000000\r\n\r\n")
        for _ in range(5000):
            writer.write(b"x" * 10_000)
            await writer.drain()
            num_sent += 10_000

    async with raw_server(talk) as port:
        http = http_to(port)
        async with http.response("POST", "chat", {}, accept="application/json") as response:
            await asyncio.sleep(0.1)
            held_back = num_sent
            assert len(await response.body(10**8)) == 50_000_000
        assert held_back < 20_000_000  # What the system's buffers hold.
        await http.close()


async def test_leaving_an_answer_ends_the_work() -> None:
    left = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(CHUNKED + b"1\r\n[\r\n")
        try:
            await reader.read()
        finally:
            left.set()

    async with raw_server(talk) as port:
        http = http_to(port)
        async with http.response("POST", "chat", {}, accept="application/json"):
            pass
        await left.wait()


async def test_no_header_has_a_second_line() -> None:
    async with raw_server(answering(WHOLE)) as port:
        http = http_to(port)
        for bad in ("a\r\nx: y", "a\nx: y", "a\0", "€"):
            with pytest.raises(UpstreamError, match="can't be asked in HTTP") as failure:
                await http.json("chat", {}, {"x-told": bad})
            assert failure.value.code == "upstream_malformed"


async def test_what_is_asked_is_what_the_endpoint_sees() -> None:
    heads: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            heads.append(await head_of(reader))
            writer.write(WHOLE)

    async with raw_server(talk) as port:
        http = http_to(port)
        await http.json("models/a b\r\n:count?alt=sse&x=ü#y", {"messages": "ü"})
        await http.json("../tokenize", method="GET")
        await http.json("tasks/1/cancel")
        await http.close()
    first, second, third = (head.decode().split("\r\n") for head in heads)
    assert first[0] == "POST /v1/models/a%20b%0D%0A:count?alt=sse&x=%C3%BC%23y HTTP/1.1"
    assert f"host: 127.0.0.1:{port}" in first
    assert {"content-type: application/json", "content-length: 17", "authorization: Bearer sk-key"} < set(first)
    assert second[0] == "GET /tokenize HTTP/1.1"
    assert not any(line.startswith("content-") for line in second)
    assert third[0] == "POST /v1/tasks/1/cancel HTTP/1.1"
    assert "content-length: 0" in third


# --- proxies -----------------------------------------------------------------------------------------------------


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's context for the name far.invalid, whose certificate this machine trusts."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    begins = datetime.now(UTC) - timedelta(days=1)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), begins,
                                begins + timedelta(days=9))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("far.invalid")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    (tmp_path / "ca.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "ca.pem", tmp_path / "key.pem")
    ours = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    monkeypatch.setattr(reaching, "tls", lambda: ours)
    return context


async def test_tls_goes_through_a_proxy_that_sees_nothing_of_it(
    trusted: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_for: list[bytes] = []

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(10_000):
            assert b"sk-key" not in data
            writer.write(data)
        writer.close()

    async with raw_server(answering(WHOLE, WHOLE), trusted) as far:

        async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked_for.append(await head_of(reader))
            there, back = await asyncio.open_connection("127.0.0.1", far)
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await asyncio.gather(copy(reader, back), copy(there, writer))

        async with raw_server(proxy) as port:
            monkeypatch.setenv("https_proxy", f"http://me:p%40ss@127.0.0.1:{port}")
            http = Http(Endpoint("ours", "https://far.invalid/v1", "sk-key"))
            assert [await http.json("chat", {}) for _ in range(2)] == [b"{}", b"{}"]
            await http.close()
    (head,) = asked_for
    assert head.startswith(b"CONNECT far.invalid:443 HTTP/1.1\r\n")
    assert b"proxy-authorization: Basic bWU6cEBzcw==\r\n" in head


async def test_a_proxy_that_is_asked_by_tls_forwards_plain_http(
    trusted: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, heads = asyncio.get_running_loop(), list[bytes]()
    getaddrinfo = loop.getaddrinfo
    monkeypatch.setattr(loop, "getaddrinfo", lambda _, port, **options: getaddrinfo("127.0.0.1", port, **options))

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            heads.append(await head_of(reader))
            writer.write(WHOLE)

    async with raw_server(proxy, trusted) as port:
        monkeypatch.setenv("http_proxy", f"https://me:pass@far.invalid:{port}")
        http = Http(Endpoint("ours", "http://farther.invalid/v1", "sk-key"))
        assert [await http.json("chat", {}) for _ in range(2)] == [b"{}", b"{}"]
        await http.close()
    assert heads[0].startswith(b"POST http://farther.invalid/v1/chat HTTP/1.1\r\nhost: farther.invalid\r\n")
    assert b"proxy-authorization: Basic bWU6cGFzcw==\r\n" in heads[0]


async def test_a_proxy_that_refuses_is_an_endpoint_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    async with raw_server(answering(b"HTTP/1.1 407 No\r\ncontent-length: 0\r\n\r\n")) as port:
        monkeypatch.setenv("https_proxy", f"127.0.0.1:{port}")
        http = Http(Endpoint("ours", "https://far.invalid/v1"))
        with pytest.raises(UpstreamError) as failure:
            await http.json("chat", {})
    assert failure.value.code == "upstream_unreachable"


def test_a_proxy_of_another_kind_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:1080")
    with pytest.raises(ConfigError, match="proxy"):
        Http(Endpoint("ours", "https://far.invalid/v1"))
