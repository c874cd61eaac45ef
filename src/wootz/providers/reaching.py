"""From an address to a connection: its name looked up, the proxy that the environment names, TLS."""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
import urllib.request
from collections.abc import Awaitable
from dataclasses import dataclass
from functools import cache
from typing import TypeVar
from urllib.parse import SplitResult, quote, unquote, urlsplit

import certifi
from aiohappyeyeballs import start_connection

from wootz.core import ConfigError
from wootz.providers.connection import Connection, Failed

NEXT_ADDRESS_SECONDS = 0.25
"""A name's addresses are tried one after another, each this long before the next one is tried beside it.
Source: https://www.rfc-editor.org/rfc/rfc8305"""
PORTS = {"http": 80, "https": 443}
PROXY_SECONDS = 30.0
MOST_KNOWN = 16
"""Beginnings of requests that are kept: a protocol has a few paths, and then there are ids."""

UNREACHABLE = ("it cannot be reached", "upstream_unreachable")

Result = TypeVar("Result")


@dataclass(frozen=True)
class Place:
    """Where something listens."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: SplitResult) -> Place:
        host = url.hostname or ""
        return cls(url.scheme, host if host.isascii() else host.encode("idna").decode(), url.port or PORTS[url.scheme])

    @property
    def authority(self) -> str:
        """As it is written in a ``host`` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


class Way:
    """The way to a base URL."""

    def __init__(self, base_url: str) -> None:
        url = urlsplit(base_url)
        self.place = Place.of(url)
        self._known = dict[tuple[str, str], str]()
        self._path = url.path
        self._proxy, self._proxy_header = _proxy(self.place)
        if url.scheme == "https":
            tls()  # Reading the authorities takes a while: now, not in the first request's time.

    def beginning(self, method: str, path: str) -> str:
        """Of a request: its line, and what a proxy has to know besides."""
        if (known := self._known.get((method, path))) is None:
            known = self._beginning(method, path)
            if len(self._known) < MOST_KNOWN:  # Others have an id in them.
                self._known[method, path] = known
        return known

    def _beginning(self, method: str, path: str) -> str:
        base = self._path
        while path.startswith("../"):
            base, path = base.rpartition("/")[0], path.removeprefix("../")
        target = quote(f"{base}/{path}", safe=_IN_TARGETS)
        if self._proxy is None or self.place.scheme == "https":
            return f"{method} {target} HTTP/1.1\r\nhost: {self.place.authority}\r\n"
        whole = f"http://{self.place.authority}{target}"
        return f"{method} {whole} HTTP/1.1\r\nhost: {self.place.authority}\r\n{self._proxy_header}"

    async def connect(self, seconds: float) -> Connection:
        """Raises `Failed`."""
        try:
            async with asyncio.timeout(seconds):
                return await self._connect()
        except TimeoutError:
            raise Failed("it did not accept a connection in time", "upstream_timeout") from None

    async def _connect(self) -> Connection:
        if self._proxy is None:
            return await _reach(self.place)
        connection = await _reach(self._proxy)
        if self.place.scheme == "http":
            return connection
        through = f"{self.place.host}:{self.place.port}"
        request = f"CONNECT {through} HTTP/1.1\r\nhost: {through}\r\n{self._proxy_header}\r\n"
        try:
            answer = await connection.ask(request.encode(), PROXY_SECONDS)
            if answer.status != 200:
                raise Failed(*UNREACHABLE)
            return await _secured(connection.start_tls(tls(), self.place.host))
        except BaseException:
            connection.abort()
            raise


_IN_TARGETS = "%/:?&=+,;@!$'()*~[]"


async def _reach(place: Place) -> Connection:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError):
        raise Failed("its name cannot be resolved", "upstream_unknown_host") from None
    try:
        connected = await start_connection(found, happy_eyeballs_delay=NEXT_ADDRESS_SECONDS)
        if place.scheme == "http":
            return (await loop.create_connection(Connection, sock=connected))[1]
    except OSError:
        raise Failed(*UNREACHABLE) from None
    securing = loop.create_connection(Connection, sock=connected, ssl=tls(), server_hostname=place.host)
    return (await _secured(securing))[1]


async def _secured(connecting: Awaitable[Result]) -> Result:
    try:
        return await connecting
    except ssl.SSLCertVerificationError:
        raise Failed("its certificate is not to be trusted", "upstream_tls") from None
    except OSError:
        raise Failed("no secure connection came about", "upstream_tls") from None


@cache
def tls() -> ssl.SSLContext:
    """Trusts what this machine trusts (``SSL_CERT_FILE`` included), and the public authorities where it knows none."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


def _proxy(place: Place) -> tuple[Place | None, str]:
    """The one that the environment names (``HTTPS_PROXY``, ``NO_PROXY``), and the header that it wants."""
    named = urllib.request.getproxies().get(place.scheme)
    if named is None or urllib.request.proxy_bypass(place.host):
        return None, ""
    url = urlsplit(named if "://" in named else f"http://{named}")
    if url.scheme not in PORTS or not url.hostname:
        raise ConfigError(f"the proxy that the environment names for {place.scheme} is no http:// or https:// address")
    if url.username is None:
        return Place.of(url), ""
    said = f"{unquote(url.username)}:{unquote(url.password or '')}".encode()
    return Place.of(url), f"proxy-authorization: Basic {base64.b64encode(said).decode()}\r\n"
