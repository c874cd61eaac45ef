"""The lines of a batch's input file: ``{"custom_id": …, "method": "POST", "url": …, "body": {…}}``.

Each is read as strictly as a request of its own (`strict_json`), and only one at a time is in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from pydantic import BaseModel, ValidationError

from wootz.core import BadRequestError
from wootz.core.wire import ChatRequest, CompletionRequest, EmbeddingRequest
from wootz.gateway.errors import bad_request
from wootz.gateway.strict_json import loads
from wootz.gateway.surfaces.responses import ResponseRequest

ENDPOINTS: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/embeddings": EmbeddingRequest,
    "/v1/responses": ResponseRequest,
}

MAX_LINES = 50_000


@dataclass(frozen=True)
class Line:
    number: int
    custom_id: str
    body: dict[str, Any]


def raw_lines(file: BinaryIO, max_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Number (from 1) and content of each line that is not blank. Raises `BadRequestError` for what is too much."""
    number = 0
    while raw := file.readline(max_bytes + 2):
        number += 1
        if len(raw.rstrip(b"\r\n")) > max_bytes:
            message = f"line {number} is longer than a request may be ({max_bytes} bytes)"
            raise BadRequestError(message, code="line_too_long", param="file")
        if number > MAX_LINES:
            raise BadRequestError(f"a batch has at most {MAX_LINES} lines", code="too_many_lines", param="file")
        if raw.strip():
            yield number, raw


def check_file(file: BinaryIO, max_bytes: int) -> None:
    """What an upload has to be: lines of JSON objects, at least one."""
    number = 0
    for number, raw in raw_lines(file, max_bytes):
        _object(raw, number)
    if not number:
        raise BadRequestError("the file has no line", code="empty_file", param="file")


def read_lines(file: BinaryIO, endpoint: str, max_bytes: int) -> Iterator[Line]:
    """Raises `BadRequestError` for a line that is no request for the endpoint; its ``param`` names what."""
    for number, raw in raw_lines(file, max_bytes):
        yield _line(number, raw, endpoint)


def check_lines(file: BinaryIO, endpoint: str, max_bytes: int) -> tuple[int, list[dict[str, Any]]]:
    """How many lines there are, and what is wrong with the first that is, as OpenAI lists it."""
    seen = set[str]()
    number = 0
    try:
        for number, raw in raw_lines(file, max_bytes):
            custom_id = _line(number, raw, endpoint).custom_id
            if custom_id in seen:
                message = f'the custom_id "{custom_id[:60]}" is given twice'
                raise BadRequestError(message, code="duplicate_custom_id", param="custom_id")
            seen.add(custom_id)
    except BadRequestError as error:
        return 0, [{"code": error.code, "message": str(error), "param": error.param, "line": number}]
    return len(seen), []


def request_of(endpoint: str, body: dict[str, Any]) -> Any:
    """The body as the endpoint's request. Raises `BadRequestError`."""
    try:
        return ENDPOINTS[endpoint].model_validate(body)
    except ValidationError as error:
        raise bad_request([{**one, "loc": ("body", *one["loc"])} for one in error.errors()], body) from None


def _line(number: int, raw: bytes, endpoint: str) -> Line:
    line = _object(raw, number)
    custom_id, body = line.get("custom_id"), line.get("body")
    if not isinstance(custom_id, str) or not custom_id:
        raise BadRequestError("every line needs a custom_id", code="missing_custom_id", param="custom_id")
    if line.get("method") != "POST":
        raise BadRequestError('the method is "POST"', code="invalid_method", param="method")
    if line.get("url") != endpoint:
        raise BadRequestError(f'the url is the batch\'s endpoint, "{endpoint}"', code="invalid_url", param="url")
    if not isinstance(body, dict):
        raise BadRequestError("the body is an object", code="invalid_body", param="body")
    if body.get("stream"):
        raise BadRequestError("a batch does not stream", code="invalid_body", param="body.stream")
    return Line(number, custom_id, body)


def _object(raw: bytes, number: int) -> dict[str, Any]:
    try:
        line = loads(raw)
    except json.JSONDecodeError as error:
        message = f"line {number} is not valid JSON: {error.msg}"
        raise BadRequestError(message, code="invalid_json_line", param="file") from None
    if not isinstance(line, dict):
        raise BadRequestError(f"line {number} is not a JSON object", code="invalid_json_line", param="file")
    return line
