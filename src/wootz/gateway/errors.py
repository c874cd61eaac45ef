"""Every failure as OpenAI's error body: ``{"error": {"message", "type", "param", "code"}}``.

Messages and codes for a request of the wrong shape follow OpenAI's own (``invalid_type``,
``missing_required_parameter``, ``integer_below_min_value``, …), and ``param`` names the field as one would write it:
``messages[0].content``. The routes of another protocol have another body (`wootz.gateway.entrance`).
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from wootz.core import (
    BadRequestError,
    NotFoundError,
    PayloadTooLargeError,
    RateLimitError,
    UnavailableError,
    WootzError,
)

log = logging.getLogger(__name__)

MAX_PARAM_CHARS = 200

ErrorBodyOf = Callable[[WootzError, str], dict[str, Any]]
"""How a protocol words an error: the error and the request's id to a JSON body."""


FORESEEN = (WootzError, RequestValidationError, HTTPException)


def add_handlers(app: FastAPI) -> None:
    for kind in FORESEEN:
        app.add_exception_handler(kind, worded)


async def worded(request: Request, error: Exception) -> JSONResponse:
    """The answer to one that was foreseen."""
    match error:
        case WootzError():
            return error_response(error, request)
        case RequestValidationError():
            return error_response(bad_request(error.errors(), error.body), request)
        case HTTPException():
            return _http_error(request, error)
        case _:
            raise error


def error_response(error: WootzError, request: Request | None = None, *, status: int | None = None) -> JSONResponse:
    """In the words of the protocol that the request came by, else in OpenAI's."""
    headers = {}
    if error.code == "database_unavailable":  # Its words name the database's place and are for whoever runs it.
        log.error("%s", error)
        error = UnavailableError("the gateway's database is out of reach", code=error.code)
    if isinstance(error, RateLimitError):
        headers |= error.headers
        if math.isfinite(error.retry_after):
            headers["retry-after"] = str(math.ceil(error.retry_after))
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    body_of: ErrorBodyOf | None = getattr(request.state, "error_body", None) if request else None
    body = body_of(error, request.state.request_id) if request and body_of else error.to_openai()
    return JSONResponse(body, status or error.status, headers)


def _http_error(request: Request, refusal: HTTPException) -> JSONResponse:
    """The framework's own refusals: no such path, wrong method, body too large."""
    if refusal.status_code == HTTPStatus.NOT_FOUND:
        return error_response(NotFoundError(f"nothing is served at {request.url.path}", code="unknown_url"), request)
    if refusal.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return error_response(PayloadTooLargeError("the request body is too large"), request)
    code = {405: "method_not_allowed"}.get(refusal.status_code, "invalid_request")
    phrase = f"{HTTPStatus(refusal.status_code).phrase.lower()}: {request.method} {request.url.path}"
    response = error_response(BadRequestError(phrase, code=code), request, status=refusal.status_code)
    response.headers.update(refusal.headers or {})
    return response


# --- what is wrong with a request --------------------------------------------------------------------------------


def bad_request(errors: Sequence[Mapping[str, Any]], body: Any) -> BadRequestError:
    """The one thing to mend first, of all that pydantic found.

    A field of several types (a text or a list of parts) fails once per type. The deepest failure is the type that was
    meant; where all are equally deep, all the types are named.
    """
    located = [(_path(error["loc"], body), error) for error in errors]
    first = located[0][0][:1]
    located = [(path, error) for path, error in located if path[:1] == first]
    deepest = max(len(path) for path, _ in located)
    candidates = [error for path, error in located if len(path) == deepest]
    path = next(path for path, _ in located if len(path) == deepest)
    return _explain(candidates, _param(path))


def _path(loc: Sequence[str | int], body: Any) -> list[str | int]:
    """The part of pydantic's location that is in the request, without the names it gives to a union's types."""
    path: list[str | int] = []
    for part in loc[1:]:
        if isinstance(part, int) and isinstance(body, list):
            path.append(part)
            body = body[part] if part < len(body) else None
        elif isinstance(part, str) and isinstance(body, dict) and (part in body or part == loc[-1]):
            path.append(part)
            body = body.get(part)
    return path


def _param(path: Sequence[str | int]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
    return text[:MAX_PARAM_CHARS]


_EXPECTED = {
    "string": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "a boolean",
    "list": "an array",
    "dict": "an object",
    "model": "an object",
    "model_attributes": "an object",
}

_LIMITS = {
    "greater_than": "below_min_value",
    "greater_than_equal": "below_min_value",
    "less_than": "above_max_value",
    "less_than_equal": "above_max_value",
}


def _explain(errors: Sequence[Mapping[str, Any]], param: str) -> BadRequestError:
    error = errors[0]
    kind, given, field = error["type"], error.get("input"), f'"{param}"' if param else "the body"
    if kind == "json_invalid":
        return BadRequestError(f"the body is not valid JSON: {error['ctx']['error']}", code="invalid_json")
    if kind == "missing" and param:
        return BadRequestError(f"missing required parameter: {field}", code="missing_required_parameter", param=param)
    if kind == "missing" or isinstance(given, bytes):
        return BadRequestError(
            "the body must be a JSON object", code="invalid_json", hint="send the header Content-Type: application/json"
        )
    expected = [_EXPECTED[one] for e in errors if (one := e["type"].removesuffix("_type")) in _EXPECTED]
    if kind.endswith("_type") and expected:
        wanted = " or ".join(dict.fromkeys(expected))
        message = f"invalid type for {field}: expected {wanted}, but got {_a(given)} instead"
        return BadRequestError(message, code="invalid_type", param=param or None)
    if kind in _LIMITS:
        number = "integer" if isinstance(given, int) else "decimal"
        message = f"invalid value for {field}: {_lower(error['msg'])}"
        return BadRequestError(message, code=f"{number}_{_LIMITS[kind]}", param=param)
    if kind in ("too_short", "string_too_short"):
        code = "empty_array" if kind == "too_short" else "empty_string"
        return BadRequestError(f"{field} must not be empty", code=code, param=param)
    message = _lower(error["msg"].removeprefix("Value error, "))
    if kind == "value_error":  # Ours, from `wootz.core.wire`: a sentence that names the field first, in quotes.
        named = re.match(r'"([\w.\[\]]+)"', message)
        param = ".".join(filter(None, (param, named[1]))) if named else param
        return BadRequestError(message, param=param or None)
    return BadRequestError(f"invalid value for {field}: {message}", param=param or None)


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def _a(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "an integer", float: "a number", str: "a string", list: "an array"}
    return names.get(type(value), "an object")
