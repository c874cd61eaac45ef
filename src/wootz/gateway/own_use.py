"""What the house itself asks of a model: on the path of users' requests, so that it is recorded and its cost seen."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from wootz.core import LanguageModel
from wootz.core.wire import ChatChunk, ChatRequest, new_id

if TYPE_CHECKING:
    from wootz.gateway.gateway import Gateway


class OwnUse(LanguageModel):
    """``route`` is what the record says it was for."""

    def __init__(self, gateway: Gateway, name: str, route: str) -> None:
        self.name, self._gateway, self._route = name, gateway, route

    def chat(self, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        return self._gateway.chat(None, request, request_id=new_id(self._route), route=self._route)
