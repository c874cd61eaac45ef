"""The HTTP face: OpenAI's endpoints, keys for administrators, and what a load balancer and Prometheus ask.

Other protocols are in `wootz.gateway.surfaces`.
"""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter, FastAPI, Request, Response
from starlette.middleware import Middleware

from wootz.core import Config, fold_chat, fold_completion
from wootz.core.wire import (
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    EmbeddingRequest,
    EmbeddingResponse,
    RerankRequest,
    RerankResponse,
    SamplingFields,
)
from wootz.gateway import account_routes, adapters, alert_routes, engines, errors, feedback, limit_routes, surfaces
from wootz.gateway.admission import counts as admission_counts
from wootz.gateway.answers import WholeAnswer, answer_with
from wootz.gateway.caches import routes as cache_routes
from wootz.gateway.direct import Direct
from wootz.gateway.entrance import ANSWER_ERRORS, STREAM, direct_handlers, router_with_key, set_out
from wootz.gateway.gateway import Gateway
from wootz.gateway.identity import routes as identity_routes
from wootz.gateway.late_route import LateRoute
from wootz.gateway.middleware import BodyLimit, RequestId
from wootz.gateway.routing import admin as route_states
from wootz.gateway.schemas import Health, ModelInfo, ModelList
from wootz.telemetry import CONTENT_TYPE


def install(app: FastAPI, config: Config) -> None:
    """Error bodies, request ids and the body limit for all of an application's routes, the console's too."""
    errors.add_handlers(app)
    app.add_middleware(
        BodyLimit, max_bytes=config.server.max_body_bytes, larger={"/v1/files": config.batches.max_file_bytes}
    )
    app.add_middleware(RequestId)  # The last one added is the outermost.


def add_routes(app: FastAPI, gateway: Gateway) -> None:
    """All that the gateway serves, what is asked of models first."""
    answering = [_inference(gateway), *surfaces.routers(gateway)]
    app.user_middleware.append(Middleware(Direct, direct_handlers(answering)))  # The innermost.
    for router in (*answering, _operations(gateway), *_administration(gateway)):
        app.router.routes.extend(router.routes)  # As they are: to include a router would be to analyse its routes anew.


def _administration(gateway: Gateway) -> Iterator[APIRouter]:
    alert_routes.add_admin_routes(alerts := router_with_key(gateway, "operate", tags=["alerts"]), gateway)
    yield alerts
    adapters.add_routes(changes := router_with_key(gateway, "operate", audited=True, tags=["adapters"]), gateway)
    yield changes
    cache_routes.add_admin_routes(caches := router_with_key(gateway, "operate", tags=["caches"]), gateway)
    yield caches
    if gateway.keys is None:
        return
    account_routes.add_routes(accounts := router_with_key(gateway, "accounts", tags=["accounts"]), gateway.keys)
    yield accounts
    costs = router_with_key(gateway, "costs", tags=["accounts"])
    limit_routes.add_routes(costs, gateway.keys, gateway.limits)
    yield costs
    yield from identity_routes.routers(gateway)
    administration = router_with_key(gateway, "operate", audited=True, tags=["engines"])
    engines.add_routes(administration, gateway)
    route_states.add_routes(administration, gateway)
    admission_counts.add_routes(administration, gateway.admission.queues)
    yield administration


def _inference(gateway: Gateway) -> APIRouter:
    router = router_with_key(gateway, "inference", tags=["inference"])

    @router.get("/v1/models")
    async def list_models(request: Request) -> ModelList:
        names = gateway.visible_models(request.state.key)
        return ModelList(data=[model_info(name) for name in names])

    @router.get("/v1/models/{model:path}")
    async def get_model(request: Request, model: str) -> ModelInfo:
        return model_info(gateway.model(request.state.key, model).name)

    @router.post("/v1/chat/completions", response_model=ChatCompletion, responses=STREAM | ANSWER_ERRORS)
    async def chat(request: Request, body: ChatRequest) -> Response:
        set_out(request, body)
        chunks = gateway.chat(request.state.key, body, request_id=request.state.request_id)
        return answer_with(chunks, fold_chat, stream=body.stream, include_usage=_wants_usage(body))

    @router.post("/v1/completions", response_model=Completion, responses=STREAM | ANSWER_ERRORS)
    async def complete(request: Request, body: CompletionRequest) -> Response:
        set_out(request, body)
        chunks = gateway.complete(request.state.key, body, request_id=request.state.request_id)
        return answer_with(chunks, fold_completion, stream=body.stream, include_usage=_wants_usage(body))

    @router.post("/v1/embeddings", response_model=EmbeddingResponse, responses=ANSWER_ERRORS)
    async def embed(request: Request, body: EmbeddingRequest) -> Response:
        set_out(request, body)
        return WholeAnswer(gateway.embed(request.state.key, body, request_id=request.state.request_id))

    @router.post("/v1/rerank", response_model=RerankResponse, responses=ANSWER_ERRORS)
    async def rerank(request: Request, body: RerankRequest) -> Response:
        """Documents by their relevance to a query, as Cohere and Jina have it."""
        set_out(request, body)
        return WholeAnswer(gateway.rerank(request.state.key, body, request_id=request.state.request_id))

    cache_routes.add_routes(router, gateway)
    feedback.add_routes(router, gateway)
    alert_routes.add_routes(router, gateway)

    def model_info(name: str) -> ModelInfo:
        return ModelInfo.of(gateway.models[name], gateway.started)

    return router


def _operations(gateway: Gateway) -> APIRouter:
    """Open to everybody who reaches the port: they hold no secrets, and probes carry no keys."""
    router = APIRouter(tags=["operations"], route_class=LateRoute)

    @router.get("/healthz")
    async def live() -> Health:
        """The server answers; it says nothing of the models."""
        return Health(status="ok")

    @router.get("/readyz", responses={503: {"model": Health, "description": "Some models do not answer yet."}})
    async def ready(response: Response) -> Health:
        """Every model would work on a request sent now, and this server stays."""
        if gateway.draining:
            response.status_code = 503
            return Health(status="draining")
        unready = await gateway.unready()
        response.status_code = 503 if unready else 200
        return Health(status="loading" if unready else "ready", waiting_for=unready)

    @router.get("/metrics", response_class=Response, responses={200: {"content": {CONTENT_TYPE: {}}}})
    async def metrics() -> Response:
        """Prometheus exposition."""
        return Response(gateway.telemetry.metrics_text(), media_type=CONTENT_TYPE)

    return router


def _wants_usage(body: SamplingFields) -> bool:
    return body.stream_options is not None and body.stream_options.include_usage
