"""Results are fetched from where a far end says, but never from our own network, whatever a name leads to."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from wootz.core import UpstreamError
from wootz.providers.dashscope_tasks import DashScopeMediaModel
from wootz.providers.endpoint import Endpoint
from wootz.providers.public_addresses import is_public

INSIDE = ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
          "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::",
          "ff02::1", "64:ff9b:1::1", "64:ff9b::a00:1", "not an address"]  # fmt: skip


@pytest.mark.parametrize("address", INSIDE)
def test_what_is_inside(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "8.8.8.8", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::808:808"]
)
def test_what_is_outside(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "localhost", "2130706433", "0x7f.1", "0177.0.0.1", "rebinding.test"],
)
async def test_a_result_inside_of_our_network_is_not_fetched(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The listener counts who comes. "rebinding.test" is a name like any other, until it is looked up to be used."""
    visits = 0

    def visited(_reader: Any, writer: asyncio.StreamWriter) -> None:
        nonlocal visits
        visits += 1
        writer.close()

    listener = await asyncio.start_server(visited, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    loop = asyncio.get_running_loop()
    getaddrinfo = loop.getaddrinfo

    async def rebinding(name: str, *rest: Any, **options: Any) -> Any:
        if name != "rebinding.test":
            return await getaddrinfo(name, *rest, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(loop, "getaddrinfo", rebinding)
    model = DashScopeMediaModel(Endpoint("m", "https://far.example/api/v1", "key", "wanx2.1-t2i-turbo"))
    with pytest.raises(UpstreamError):
        await model.download(f"https://{host}:{port}/a.png")
    with pytest.raises(UpstreamError):
        await model.download(f"http://{host}:{port}/a.png")
    assert visits == 0
    await model.close()
    listener.close()
