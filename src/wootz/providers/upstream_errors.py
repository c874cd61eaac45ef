"""What a remote endpoint's failure means to the user who asked us.

What the user wrote wrong (400, 422, …) is theirs, with the endpoint's own words. A refused key, an exhausted account or
a model that the endpoint does not know is the operator's to mend: the user learns that it failed, not the details.
"""

from __future__ import annotations

import json
import re
from typing import Any

import httpx

from wootz.core import BadRequestError, PayloadTooLargeError, RateLimitError, UpstreamError, WootzError

MAX_ERROR_BYTES = 64 * 2**10
MAX_MESSAGE_CHARS = 500

OPERATORS = {
    401: "the endpoint refused our credentials",
    402: "the endpoint wants its account paid",
    403: "the endpoint refused our credentials",
    404: "the endpoint does not know this model",
}


async def error_from_response(response: httpx.Response, *, model: str, secret: str | None) -> WootzError:
    """The `WootzError` for an answer whose status is not 2xx. Reads at most `MAX_ERROR_BYTES` of its body."""
    status = response.status_code
    if status in OPERATORS:
        return UpstreamError(f'model "{model}": {OPERATORS[status]}', code="upstream_refused")
    if status == 429:
        return RateLimitError(
            f'model "{model}": the endpoint\'s rate limit is reached',
            retry_after=_retry_after(response),
            code="upstream_rate_limit",
        )
    if not 400 <= status < 500 or status == 408:
        return UpstreamError(f'model "{model}": the endpoint failed with status {status}')
    body = _json(await _read_start(response))
    nested = body.get("error")
    message, param, code = _details(nested if isinstance(nested, dict) else body, secret)
    if status == 413:
        return PayloadTooLargeError(message or "the request is too large for the endpoint")
    return BadRequestError(message or f'model "{model}": the endpoint refused the request', param=param, code=code)


def error_from_event(detail: Any, *, model: str, secret: str | None) -> UpstreamError:
    """The `WootzError` for an error in the middle of a stream."""
    message, _, _ = _details(detail if isinstance(detail, dict) else {"message": detail}, secret)
    return UpstreamError(f'model "{model}": the endpoint failed in the middle of its answer: {message or "no reason"}')


def _details(detail: dict[str, Any], secret: str | None) -> tuple[str | None, str | None, str | None]:
    """``(message, param, code)``: OpenAI's, or FastAPI's ``detail``, each None where it is no text."""

    def text(key: str) -> str | None:
        value = detail.get(key)
        if not isinstance(value, str) or not value:
            return None
        return (value.replace(secret, "***") if secret else value)[:MAX_MESSAGE_CHARS]

    return text("message") or text("detail"), text("param"), text("code")


def _json(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


async def _read_start(response: httpx.Response) -> bytes:
    body = b""
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > MAX_ERROR_BYTES:
            break
    return body


def _retry_after(response: httpx.Response) -> float:
    """Seconds, as nearly every API gives them; the header's other form, a date, is taken as a second."""
    value = response.headers.get("retry-after", "")
    return float(value) if re.fullmatch(r"\d{1,6}(\.\d+)?", value) else 1.0
