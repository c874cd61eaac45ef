"""From the configuration to routes, over models that are open already."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from wootz.core import Config, LanguageModel
from wootz.core.sections import RouteConfig
from wootz.core.sections.routes import CascadeConfig, in_order
from wootz.gateway.identity.residency import region_of
from wootz.gateway.routing.deployment import Deployment
from wootz.gateway.routing.policies.learned import look_of
from wootz.gateway.routing.route import Route, Target
from wootz.providers.cascade import Cascade
from wootz.providers.confidence import calls_of, signal_of
from wootz.telemetry import PriceBook
from wootz.telemetry.prices import Price


def open_routes(
    config: Config,
    models: Mapping[str, LanguageModel],
    prices: PriceBook,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, LanguageModel]:
    """Every configured route by its name. A model that is in several is one deployment in all of them.

    Raises `ConfigError` for a learned router that can't be read.
    """
    deployments = {name: Deployment(model, clock, region=region_of(config, name)) for name, model in models.items()}
    routes: dict[str, LanguageModel] = {}
    for name in in_order(config.routes, models):
        route = config.routes[name]
        if route.cascade is not None:
            routes[name] = _cascade(name, route, route.cascade, deployments)
        else:
            routes[name] = _route(name, config, deployments, prices)
        deployments[name] = Deployment(routes[name], clock, composed=True)
    return routes


def _route(name: str, config: Config, deployments: Mapping[str, Deployment], prices: PriceBook) -> Route:
    route = config.routes[name]

    def price_of(model: LanguageModel) -> Callable[[int], Price | None]:
        return lambda num_prompt: prices.find(model.name, model.provider, datetime.now(UTC), num_prompt)

    targets = [
        Target(
            deployment=deployments[target.model],
            weight=target.weight,
            region=target.region or deployments[target.model].region,
            tags=target.tags,
            capacity=target.capacity,
            price=price_of(deployments[target.model].model),
        )
        for target in route.targets
    ]
    models = {model: deployment.model for model, deployment in deployments.items()}
    look = look_of(name, route.router, models) if route.router is not None else None
    return Route(name, route, targets, [deployments[fallback] for fallback in route.fallbacks], look=look)


def _cascade(name: str, config: RouteConfig, cascade: CascadeConfig, deployments: Mapping[str, Deployment]) -> Cascade:
    """Each model is a route of its own, so that its attempts are recorded, retried and kept from what is down."""
    alone = config.model_copy(update={"policy": "order", "cascade": None, "fallbacks": [], "rules": []})
    stages = [Route(one.model, alone, [Target(deployment=deployments[one.model])]) for one in config.targets]
    stages[-1].fallbacks = [deployments[fallback] for fallback in config.fallbacks]
    return Cascade(name, stages, cascade.thresholds, signal_of(cascade), calls=calls_of(cascade))
