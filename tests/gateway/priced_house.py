"""A price for the scripted answer, and clients whose keys have limits to use up."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import httpx
from serving import ASK, CHAT, GatewayServer

from wootz.core import PriceConfig

PRICE = PriceConfig(input=Decimal(1000), cached_input=Decimal(500), output=Decimal(10000))
COST = Decimal("0.036")
"""Of the scripted answer: 5 fresh and 2 cached prompt tokens, 3 tokens."""


def client_with(server: GatewayServer, name: str, **limits: Any) -> httpx.Client:
    _, token = server.call(server.keys.create(name, **limits))
    return httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {token}"}, timeout=30)


def ask(client: httpx.Client, conversation: str | None = None, **fields: Any) -> httpx.Response:
    headers = {} if conversation is None else {"x-wootz-conversation": conversation}
    return client.post(CHAT, json={**ASK, "max_tokens": 3, **fields}, headers=headers)
