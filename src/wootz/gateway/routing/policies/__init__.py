"""How the targets of a route are put in order, a policy a file; and the policy that a route's config asks for."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from wootz.core.sections import RouteConfig
from wootz.core.tool_wire import ModelRequest
from wootz.gateway.routing.candidate import Candidate, Policy
from wootz.gateway.routing.policies.ab import ab
from wootz.gateway.routing.policies.cheapest import cheapest
from wootz.gateway.routing.policies.learned import learned
from wootz.gateway.routing.policies.least_busy import least_busy
from wootz.gateway.routing.policies.least_latency import least_latency
from wootz.gateway.routing.policies.overflow import overflow
from wootz.gateway.routing.policies.regions import by_region
from wootz.gateway.routing.policies.rules import by_rules
from wootz.gateway.routing.policies.weights import weights


def policy_of(name: str, config: RouteConfig, random: Random) -> Policy:
    """Rules choose among the targets, the policy puts them in order, and preferred regions go first."""
    policy = _by_name(name, config, random)

    def order(candidates: Sequence[Candidate], request: ModelRequest) -> list[Candidate]:
        if config.rules:
            candidates = by_rules(candidates, request, config.rules)
        ordered = policy(candidates, request) if len(candidates) > 1 else list(candidates)
        return by_region(ordered, config.regions) if config.regions else ordered

    return order


def _by_name(name: str, config: RouteConfig, random: Random) -> Policy:
    match config.policy:
        case "weights":
            return weights(random)
        case "least-latency":
            return least_latency(random)
        case "least-busy":
            return least_busy(random)
        case "cheapest":
            return cheapest
        case "ab":
            return ab(name, random)
        case "overflow":
            return overflow
        case "learned":
            return learned(name, config.router_threshold)
        case "order" | "cascade":
            return lambda candidates, _request: list(candidates)
