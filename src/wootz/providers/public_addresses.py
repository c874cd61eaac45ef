"""Only public addresses: for what a far end tells us to fetch, which must not lead us into our own network.

Names are looked up by the connection itself, and what they lead to is looked at then. A check before the connection
would be worth nothing: the name may lead elsewhere a moment later (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
import socket

from aiohttp import abc
from aiohttp.resolver import DefaultResolver

NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""Stand for the IPv4 address in their last 32 bits."""
LOCAL_NAT64 = ipaddress.ip_network("64:ff9b:1::/48")


def is_public(address: str) -> bool:
    """Whether it is an address out in the Internet; a name is none."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in LOCAL_NAT64:
            return False
        within = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else ip.ipv4_mapped or ip.sixtofour
        ip = within or ip
    return ip.is_global and not ip.is_multicast


def is_private_literal(host: str) -> bool:
    """Whether it is an address and not public; those are not looked up."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return not is_public(host)


class PublicResolver(abc.AbstractResolver):
    """Raises `OSError` for a name that leads to any address which is not public."""

    def __init__(self) -> None:
        self._inner = DefaultResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[abc.ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        if not all(is_public(one["host"]) for one in found):
            raise OSError(f"{host} is not a public name")
        return found

    async def close(self) -> None:
        await self._inner.close()
