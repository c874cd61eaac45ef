"""What a remote endpoint's refusal means to the user who asked us.

What the user wrote wrong (400, 422, …) is theirs, with the endpoint's own words. A refused key, an exhausted account or
a model that the endpoint does not know is the operator's to mend: the user learns that it failed, not the details.
"""

from __future__ import annotations

import json
import re
import time
from email.utils import parsedate_to_datetime
from typing import Any

from wootz.core import BadRequestError, PayloadTooLargeError, RateLimitError, UpstreamError, WootzError
from wootz.providers.connection import Response
from wootz.providers.endpoint import Endpoint

MAX_ERROR_BYTES = 64 * 2**10
MAX_MESSAGE_CHARS = 500
MAX_RETRY_SECONDS = 24 * 3600.0

OPERATORS = {
    401: "refused our credentials",
    402: "wants its account paid",
    403: "refused our credentials",
    404: "does not know this model",
}

OPERATORS_CODES = {
    "insufficient_quota": 402,  # OpenAI, with 429
    "Arrearage": 402,  # DashScope, with 400
    "API_KEY_INVALID": 401,  # Gemini, with 400
    "InvalidApiKey": 401,  # DashScope
    "model_not_found": 404,
    "ModelNotFound": 404,
}
"""What some endpoints say with a status that would make it the user's fault, or a limit that waiting mends."""


async def error_from_response(response: Response, endpoint: Endpoint) -> WootzError:
    """The `WootzError` for an answer whose status is not 2xx. Reads at most `MAX_ERROR_BYTES` of its body."""
    body = await response.body(MAX_ERROR_BYTES) if response.status < 500 else b""
    return error_from_status(response.status, response.headers.get("retry-after"), body, endpoint)


def error_from_status(status: int, retry_after: str | None, body: bytes, endpoint: Endpoint) -> WootzError:
    message, param, code, reasons = _details(body, endpoint)
    status = next((OPERATORS_CODES[reason] for reason in reasons if reason in OPERATORS_CODES), status)
    model = f'model "{endpoint.name}": the endpoint'
    if status in OPERATORS:
        in_region = f" in {endpoint.region}" if status == 404 and endpoint.region else ""
        return UpstreamError(f"{model} {OPERATORS[status]}{in_region}", code="upstream_refused")
    if status == 429:
        seconds = seconds_to_wait(retry_after) or _seconds_in(body) or 1.0
        return RateLimitError(f"{model}'s rate limit is reached", retry_after=seconds, code="upstream_rate_limit")
    if not 400 <= status < 500 or status == 408:
        return UpstreamError(f"{model} failed with status {status}", retry_after=seconds_to_wait(retry_after))
    if status == 413:
        return PayloadTooLargeError(message or "the request is too large for the endpoint")
    return BadRequestError(message or f"{model} refused the request", param=param, code=code)


def error_from_event(detail: Any, endpoint: Endpoint) -> UpstreamError:
    """The `WootzError` for an error in the middle of a stream."""
    message = _details(json.dumps({"error": detail}).encode(), endpoint)[0] or "no reason"
    return UpstreamError(f'model "{endpoint.name}": the endpoint failed in the middle of its answer: {message}')


def seconds_to_wait(retry_after: str | None) -> float | None:
    """What a ``Retry-After`` asks for, as seconds or as an HTTP date; None where it is neither, or past."""
    if retry_after is None:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d+)?", retry_after.strip()):
        seconds = float(retry_after)
    else:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return min(seconds, MAX_RETRY_SECONDS) if seconds > 0 else None


def _seconds_in(body: bytes) -> float | None:
    """Gemini says it in the body: ``"retryDelay": "21s"``."""
    found = re.search(rb'"retryDelay":\s*"(\d{1,6}(?:\.\d+)?)s"', body)
    return float(found[1]) if found else None


def _details(body: bytes, endpoint: Endpoint) -> tuple[str | None, str | None, str | None, list[str]]:
    """``(message, param, code, reasons)`` of an error's body, the first three None where they are no text.

    OpenAI, Anthropic and Gemini nest it in ``error`` (Gemini in a list besides); Ollama has a text there; FastAPI says
    ``detail``; vLLM and DashScope say it all at the top.
    """
    try:
        whole = json.loads(body)
    except ValueError:
        whole = None
    whole = whole[0] if isinstance(whole, list) and whole else whole
    whole = whole if isinstance(whole, dict) else {}
    error = whole.get("error", whole)
    error = error if isinstance(error, dict) else {"message": error}

    def text(key: str) -> str | None:
        value = error.get(key)
        if not isinstance(value, str) or not value:
            return None
        return endpoint.conceal(value)[:MAX_MESSAGE_CHARS]

    details = error.get("details")
    parts = [part for part in details if isinstance(part, dict)] if isinstance(details, list) else []
    reasons = [error.get("code"), *(part.get("reason") for part in parts)]
    return text("message") or text("detail"), text("param"), text("code"), [r for r in reasons if isinstance(r, str)]
