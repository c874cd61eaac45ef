"""What administrators see of the routes: each deployment with its breaker, its load and its latency."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from wootz.gateway.gateway import Gateway
from wootz.gateway.routing.deployment import Deployment
from wootz.gateway.routing.route import Route
from wootz.providers.cascade import Cascade


class DeploymentState(BaseModel):
    model: str
    role: Literal["target", "fallback"]
    weight: int | None = None
    region: str | None = None
    breaker: Literal["closed", "open", "half-open"]
    available_in: float = Field(description="Seconds until it may be asked: a pause of its breaker, or a Retry-After.")
    in_flight: int
    first_token: float | None = Field(description="Seconds on average, lately.")
    first_token_p95: float | None
    inter_token: float | None
    last_error: str | None


class RouteState(BaseModel):
    name: str
    policy: str
    deployments: list[DeploymentState]


class RouteList(BaseModel):
    data: list[RouteState]


def state_of(route: Route) -> RouteState:
    targets = [
        _state(target.deployment, "target", weight=target.weight, region=target.region)
        for target in route.targets.values()
    ]
    fallbacks = [_state(deployment, "fallback") for deployment in route.fallbacks]
    return RouteState(name=route.name, policy=route.config.policy, deployments=[*targets, *fallbacks])


def _state(
    deployment: Deployment, role: Literal["target", "fallback"], *, weight: int | None = None, region: str | None = None
) -> DeploymentState:
    latency = deployment.latency
    return DeploymentState(
        model=deployment.name,
        role=role,
        weight=weight,
        region=region,
        breaker=deployment.breaker.state,
        available_in=deployment.available_in,
        in_flight=deployment.in_flight,
        first_token=latency.first_token,
        first_token_p95=latency.p95_first_token,
        inter_token=latency.inter_token,
        last_error=deployment.last_error,
    )


def state_of_cascade(cascade: Cascade) -> RouteState:
    stages = [stage for stage in cascade.models if isinstance(stage, Route)]
    states = [state for stage in stages for state in state_of(stage).deployments]
    return RouteState(name=cascade.name, policy="cascade", deployments=states)


def add_routes(router: APIRouter, gateway: Gateway) -> None:
    @router.get("/admin/routes")
    async def list_routes() -> RouteList:
        """Each route, and how its models do."""
        models = gateway.models.values()
        routes = [state_of(model) for model in models if isinstance(model, Route)]
        return RouteList(data=routes + [state_of_cascade(model) for model in models if isinstance(model, Cascade)])
