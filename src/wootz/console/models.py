"""The Models page: what answers here, what it is made of, and how busy its engine is."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from wootz.console.sessions import Visitor
from wootz.console.site import Site
from wootz.core import LanguageModel, ModelConfig, WootzError
from wootz.engine.protocol import Hello, Stats
from wootz.gateway import Gateway, Key
from wootz.gateway.routing import Route
from wootz.gateway.routing.admin import RouteState, state_of, state_of_cascade
from wootz.providers import EngineModel
from wootz.providers.cascade import Cascade
from wootz.telemetry import Price

STATS_SECONDS = 1.0
"""An engine in a long step answers late; the page does not wait for it."""


@dataclass(frozen=True)
class ModelView:
    """``remote`` is a remote model's entry in the config; ``hello`` and ``stats`` are an engine's, once it is up;
    ``route`` is there for a name that stands for several models."""

    name: str
    provider: str
    ready: bool
    route: RouteState | None
    remote: ModelConfig | None
    hello: Hello | None
    defaults: dict[str, Any]
    stats: Stats | None
    price: Price | None


def add_routes(router: APIRouter, site: Site) -> None:
    @router.get("/models")
    async def list_models(request: Request, visitor: Visitor = Depends(site.visitor)) -> Response:
        return site.page("models.html", request, visitor, models=await view_models(site.gateway, visitor.key))


async def view_models(gateway: Gateway, key: Key | None) -> list[ModelView]:
    """Every model this key may use, in the order of the config; all are asked at once."""
    names = gateway.visible_models(key)
    return list(await asyncio.gather(*(_view(name, gateway) for name in names)))


async def _view(name: str, gateway: Gateway) -> ModelView:
    model, entry = gateway.models[name], gateway.config.models.get(name)
    remote = entry if entry and not entry.is_local else None
    client, defaults = (model.client, model.defaults) if isinstance(model, EngineModel) else (None, {})
    price = gateway.telemetry.prices.find(name, model.provider, datetime.now(UTC))
    stats = None
    if client is not None and client.ready:
        with contextlib.suppress(WootzError, TimeoutError):
            stats = await asyncio.wait_for(client.stats(), STATS_SECONDS)
    return ModelView(
        name=name,
        ready=await model.ready(),
        provider=model.provider,
        route=_route(model),
        remote=remote,
        hello=client.hello if client else None,
        defaults=defaults,
        stats=stats,
        price=price,
    )


def _route(model: LanguageModel) -> RouteState | None:
    if isinstance(model, Route):
        return state_of(model)
    return state_of_cascade(model) if isinstance(model, Cascade) else None
