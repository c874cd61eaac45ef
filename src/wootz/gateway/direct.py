"""Routes that take a key and a JSON body, without the framework's way to them.

FastAPI looks through every route there is, solves dependencies, and opens exit stacks and a telemetry context for a
request, which took an eighth of a small answer's CPU time. These routes need none of it: one table finds them, the key
is checked, the body is read into its type, and the route's function answers. FastAPI still describes them in
``/openapi.json`` and answers their other methods.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from email.message import Message
from typing import Any, TypeVar, get_type_hints

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from wootz.gateway.errors import FORESEEN, worded
from wootz.gateway.middleware import header_of
from wootz.gateway.strict_json import StrictJSONRequest, loads

Handler = Callable[[Request], Awaitable[Response]]
Body = TypeVar("Body", bound=BaseModel)


class Direct:
    """The innermost layer: answers these paths, and leaves the others to the framework."""

    def __init__(self, app: ASGIApp, handlers: Mapping[str, Handler]) -> None:
        self.app = app
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self._handlers.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if handler is None:
            return await self.app(scope, receive, send)
        request = StrictJSONRequest(scope, receive)
        try:
            response = await handler(request)
            await response(scope, receive, send)
        except FORESEEN as error:
            await (await worded(request, error))(scope, receive, send)


def body_type_of(route: APIRoute) -> type[BaseModel] | None:
    """What the body of a route is read into, if its function takes the request and that and nothing else, and makes the
    response itself."""
    hints = get_type_hints(route.endpoint)
    if route.methods != {"POST"} or hints.keys() != {"request", "body", "return"} or hints["return"] is not Response:
        return None
    body_type = hints["body"]
    return body_type if isinstance(body_type, type) and issubclass(body_type, BaseModel) else None


async def read_body(request: Request, body_type: type[Body]) -> Body:
    """Raises `RequestValidationError` as FastAPI does, which `wootz.gateway.errors` words."""
    content: Any = await request.body()
    if not content:
        raise RequestValidationError([{"type": "missing", "loc": ("body",), "msg": "Field required", "input": None}])
    try:
        if _is_json(header_of(request.scope, b"content-type") or ""):
            content = loads(content)
        return body_type.model_validate(content)
    except json.JSONDecodeError as error:
        wrong = {
            "type": "json_invalid",
            "loc": ("body", error.pos),
            "msg": "",
            "input": {},
            "ctx": {"error": error.msg},
        }
        raise RequestValidationError([wrong], body=error.doc) from None
    except ValidationError as error:
        found = [{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_url=False)]
        raise RequestValidationError(found, body=content) from None


def _is_json(content_type: str) -> bool:
    if content_type == "application/json":
        return True
    message = Message()
    message["content-type"] = content_type
    subtype = message.get_content_subtype()
    return message.get_content_maintype() == "application" and (subtype == "json" or subtype.endswith("+json"))
