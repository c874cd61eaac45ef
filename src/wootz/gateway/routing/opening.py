"""From the configuration to routes, over models that are open already."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from wootz.core import Config, LanguageModel
from wootz.core.sections import RouteConfig
from wootz.core.sections.routes import in_order
from wootz.gateway.routing.deployment import Deployment
from wootz.gateway.routing.route import Route, Target
from wootz.providers.cascade import Cascade
from wootz.providers.confidence import signal_of
from wootz.telemetry import Price


def open_routes(
    config: Config,
    models: Mapping[str, LanguageModel],
    price_of: Callable[[str], Price | None],
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, LanguageModel]:
    """Every configured route by its name. A model that is in several is one deployment in all of them."""
    deployments = {name: Deployment(model, clock) for name, model in models.items()}
    routes: dict[str, LanguageModel] = {}
    for name in in_order(config.routes, models):
        routes[name] = _open(name, config.routes[name], deployments, price_of, clock)
        deployments[name] = Deployment(routes[name], clock, composed=True)
    return routes


def _open(
    name: str,
    config: RouteConfig,
    deployments: Mapping[str, Deployment],
    price_of: Callable[[str], Price | None],
    clock: Callable[[], float],
) -> LanguageModel:
    if config.cascade is not None:
        # Each model is a route of its own, so that its attempts are recorded, retried and kept from what is down.
        alone = config.model_copy(update={"policy": "order", "cascade": None, "fallbacks": [], "rules": []})
        stages = [
            Route(name, alone, [Target(deployment=deployments[one.model])], clock=clock) for one in config.targets
        ]
        stages[-1].fallbacks = [deployments[fallback] for fallback in config.fallbacks]
        return Cascade(name, stages, config.cascade.thresholds, signal_of(config.cascade))
    targets = [
        Target(
            deployment=deployments[target.model],
            weight=target.weight,
            region=target.region,
            tags=target.tags,
            capacity=target.capacity,
            price=lambda model=target.model: price_of(model),
        )
        for target in config.targets
    ]
    return Route(name, config, targets, [deployments[fallback] for fallback in config.fallbacks], clock=clock)
