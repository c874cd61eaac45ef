"""What the tests of the caches ask, and a gateway's caches switched on and empty."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from serving import GatewayServer, ScriptedModel

from wootz.core import LanguageModel, PriceConfig
from wootz.core.sections import CachesConfig
from wootz.core.wire import Embedding, EmbeddingRequest, EmbeddingResponse, Usage
from wootz.gateway.caches import Caches
from wootz.telemetry.price_book import PriceBook

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}


class Directions(LanguageModel):
    """Embeds by a table of vectors; unknown texts point away from all others."""

    def __init__(self, name: str, table: dict[str, list[float]]) -> None:
        self.name, self.table = name, table

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResponse:
        assert isinstance(request.input, list)
        data = [Embedding(index=i, embedding=self.table[str(text)]) for i, text in enumerate(request.input)]
        return EmbeddingResponse(data=data, model=self.name, usage=Usage())


def switch_on(server: GatewayServer, caches: dict[str, Any], **models: LanguageModel) -> Caches:
    gateway = server.gateway
    gateway.models = {name: ScriptedModel(name) for name in ("scripted", "other")} | models
    config = gateway.config.model_copy(update={"caches": CachesConfig.model_validate(caches)})
    gateway.caches = Caches(config, gateway.models)
    server.telemetry.prices = PriceBook({"scripted": PriceConfig(input=Decimal(1000), output=Decimal(2000))})
    return gateway.caches
