"""Where a request may go: what a key bound to regions sends is computed there and nowhere else, and no model sees data
that it is not approved for.

Three things hold together, so that no way round one of them leads out:

- *the gateway*: serves such a key only where ``server.region`` says that it stands inside. What it keeps (bodies,
  answers, files) is then inside too, as long as its database and Redis are where the gateway is.
- *routes*: pass over targets and fallbacks that it may not reach (`may_reach`), so that an answer comes from within if
  it can.
- *every single model* refuses a request that may not go there (`guard`), whoever sends it: a route, a hedge, a
  cascade's judge, a cache's embedder. A model without a region is nowhere, so outside.

Cached answers belong to those who are bound to the same regions (`caches/keys.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from wootz.core import Config, LanguageModel, PermissionError_
from wootz.core.journey import Journey
from wootz.gateway.identity.attributes import Standing, model_config


def region_of(config: Config, name: str) -> str | None:
    """Of a model that is no route: its own, else its provider's; of a local one the server's."""
    model = model_config(config, name)
    if model is None:
        return None
    if model.is_local:
        return model.region or config.server.region
    provider = config.providers[model.provider].region if model.provider else None
    targets = (target for route in config.routes.values() for target in route.targets if target.model == name)
    return model.region or provider or next((target.region for target in targets if target.region), None)


def guard_all(config: Config, models: Mapping[str, LanguageModel]) -> None:
    for name, model in models.items():
        guard(model, region_of(config, name))


def guard(model: LanguageModel, region: str | None) -> None:
    """From now on this very object refuses what must not reach it. (It stays what it is: an `EngineModel`, a
    `MediaModel`, which others ask it whether it is.)"""
    for method in ("chat", "complete", "embed", "rerank", "count_tokens", "submit", "speak"):
        if (ask := getattr(model, method, None)) is not None:
            setattr(model, method, _guarded(ask, model.name, region))


def _guarded(ask: Callable[..., Any], name: str, region: str | None) -> Callable[..., Any]:
    @wraps(ask)
    def guarded(request: Any) -> Any:
        check(request.journey, name, region)
        return ask(request)

    return guarded


def may_reach(journey: Journey, name: str, region: str | None) -> bool:
    bounds = journey.bounds
    return name not in bounds.barred and (bounds.regions is None or region in bounds.regions)


def check_here(standing: Standing, here: str | None) -> None:
    """Raises `PermissionError_` where this gateway itself stands outside."""
    if standing.regions is not None and here not in standing.regions:
        where = f"in {here}" if here else "nowhere (server.region is not set)"
        raise _outside(f"this gateway stands {where}", standing.regions)


def check(journey: Journey, name: str, region: str | None) -> None:
    """Raises `PermissionError_` for a model that it may not reach."""
    if may_reach(journey, name, region):
        return
    if name in journey.bounds.barred:
        raise PermissionError_(f'this key\'s requests may not go to model "{name}"', code="barred_model")
    where = f"is computed in {region}" if region else "has no region"
    raise _outside(f'model "{name}" {where}', journey.bounds.regions or frozenset())


def _outside(what: str, regions: frozenset[str]) -> PermissionError_:
    bound = f"this key's requests stay in {', '.join(sorted(regions))}" if regions else "no region is left to this key"
    return PermissionError_(f"{what}, and {bound}", code="outside_region")
