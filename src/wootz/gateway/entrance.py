"""Routers whose routes take a key, whatever protocol they speak.

A route authenticates before it reads the body, so a stranger can't make us parse megabytes. A protocol that says what
went wrong in its own words gives its ``error_body``; it then holds for every failure of its routes: a bad key, a body
of the wrong shape or size, a model that fails before its first chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from fastapi import APIRouter, Request, Response, Security
from fastapi.security import HTTPBearer

from wootz.core import AuthenticationError
from wootz.core.acting import actor
from wootz.core.tool_wire import ModelRequest
from wootz.gateway.direct import Handler, body_type_of, read_body
from wootz.gateway.errors import ErrorBodyOf
from wootz.gateway.gateway import Gateway
from wootz.gateway.identity.roles import Permission
from wootz.gateway.late_route import LateRoute
from wootz.gateway.limits.conversations import HEADER, named
from wootz.gateway.middleware import header_of
from wootz.gateway.schemas import ErrorBody
from wootz.gateway.strict_json import StrictJSONRequest

MAX_AUDITED_BODY = 2000
BEARER = HTTPBearer(scheme_name="key", description="A Wootz key: sk-wootz-…", auto_error=False)

_ERROR = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}}
"""By its name: FastAPI would analyse the model again for each of them and each route. "default" brings it in."""
ERRORS: dict[int | str, dict[str, Any]] = {
    400: _ERROR | {"description": "The request can never succeed as it is written."},
    401: _ERROR | {"description": "No key, or an unknown, revoked or expired one."},
    403: _ERROR | {"description": "The key lacks the scope."},
    404: _ERROR | {"description": "It does not exist, or this key may not see it."},
    413: _ERROR | {"description": "The body is larger than server.max_body_bytes."},
    "default": {"model": ErrorBody, "description": "Any other failure."},
}
ANSWER_ERRORS: dict[int | str, dict[str, Any]] = {
    429: _ERROR | {"description": "A rate limit is used up; the header retry-after says for how long."},
    502: _ERROR | {"description": "A remote endpoint failed."},
    503: _ERROR | {"description": "The model is loading or restarting; the same request may succeed later."},
}
STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": 'The whole answer, or with "stream": true its chunks as server-sent events.',
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


class RouteWithKey(LateRoute):
    """One of a router with a key."""

    def direct_handler(self) -> Handler | None:
        """How `wootz.gateway.direct` answers it, where it can."""
        raise NotImplementedError


def direct_handlers(routers: Iterable[APIRouter]) -> dict[str, Handler]:
    """Those routes of the routers that need no framework, by their paths; see `wootz.gateway.direct`."""
    routes = [route for router in routers for route in router.routes if isinstance(route, RouteWithKey)]
    return {route.path: handler for route in routes if (handler := route.direct_handler())}


def router_with_key(
    gateway: Gateway,
    scope: Permission,
    *,
    audited: bool = False,
    error_body: ErrorBodyOf | None = None,
    key_header: str | None = None,
    **options: Any,
) -> APIRouter:
    """``audited``: changes are written to the audit log before they are made, by method, path and body; for what does
    not change the database, where the log would be written in the same transaction.

    ``key_header`` is another place for the key beside ``Authorization``, such as Anthropic's ``x-api-key``."""

    async def authenticate(request: Request) -> None:
        state = request.scope["state"]
        state["error_body"] = error_body
        state["key"] = await gateway.authenticate(_authorization(request, key_header), scope)

    class Route(RouteWithKey):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def authenticate_then_handle(request: Request) -> Response:
                await authenticate(request)
                strict = StrictJSONRequest(request.scope, request.receive)
                if audited and request.method != "GET":
                    body = (await strict.body())[:MAX_AUDITED_BODY].decode(errors="replace")
                    detail = {"query": request.url.query, "body": body}
                    subject = f"{request.method} {request.url.path}"
                    await gateway.audit.append(actor=actor(), action="admin.asked", subject=subject, detail=detail)
                return await handle(strict)

            return authenticate_then_handle

        def direct_handler(self) -> Handler | None:
            if (body_type := body_type_of(self)) is None:
                return None

            async def authenticate_then_answer(request: Request) -> Response:
                await authenticate(request)
                return await self.endpoint(request=request, body=await read_body(request, body_type))

            return authenticate_then_answer

    # BEARER checks nothing; it puts the key into /openapi.json.
    dependencies = [Security(BEARER)] if gateway.keys is not None else []
    options.setdefault("responses", ERRORS)
    return APIRouter(route_class=Route, dependencies=dependencies, **options)


def _authorization(request: Request, key_header: str | None) -> str | None:
    """Two different keys are refused: a filter in front might have checked the other one."""
    given = {value for name, value in request.scope["headers"] if name == b"authorization"}
    if len(given) > 1:
        raise AuthenticationError("the request holds two different keys", hint="send one Authorization header")
    authorization = given.pop().decode("latin-1") if given else None
    token = header_of(request.scope, key_header.encode()) if key_header else None
    if token is None:
        return authorization
    if authorization is not None and authorization.partition(" ")[2].strip() != token.strip():
        raise AuthenticationError(f"Authorization and {key_header} hold two different keys", hint="send one of them")
    return f"Bearer {token}"


def set_out(request: Request, asked: ModelRequest) -> None:
    """What the headers say of the journey goes along; what the journey brings, into the answer's headers."""
    asked.journey.cache_control = header_of(request.scope, b"cache-control") or ""
    if (conversation := header_of(request.scope, HEADER.encode())) is not None:
        asked.journey.conversation = named(conversation, HEADER)
    request.scope["state"]["journey"] = asked.journey
