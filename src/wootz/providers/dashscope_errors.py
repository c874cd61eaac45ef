"""DashScope's failures, ``{"code", "message", "request_id"}``, as our errors.

The code decides, not the status: an account in arrears is a 400 there, and so is a model that is not in the region.
What the user wrote wrong comes with DashScope's own words; what is the operator's to mend does not, as with every
other endpoint. Each error names DashScope's ``request_id``, without which nobody there can help.

Source: https://help.aliyun.com/zh/model-studio/error-code and the codes of the dashscope SDK 2.0.2.
"""

from __future__ import annotations

from typing import Any

from pydantic_core import from_json

from wootz.core import BadRequestError, PayloadTooLargeError, RateLimitError, UpstreamError, WootzError
from wootz.providers.endpoint import Endpoint
from wootz.providers.upstream_errors import MAX_MESSAGE_CHARS, OPERATORS, seconds_to_wait

WRONG_SERVICE = "url error"
"""What the message says when a model is on the other generation service."""

OPERATORS_CODES = {
    "InvalidApiKey": 401,
    "Arrearage": 402,
    "AccessDenied": 403,
    "Forbidden": 403,
    "WorkSpaceAccessDenied": 403,
    "ModelNotFound": 404,
    "Model": 404,  # Model.NotExist, Model.AccessDenied
}
"""By what a code begins with, up to its first dot."""

USERS_CODES = ("InvalidParameter", "BadRequest", "InvalidURL", "InvalidFile", "UnsupportedOperation")


def error_from_body(status: int, retry_after: str | None, body: bytes, endpoint: Endpoint) -> WootzError:
    """For an answer whose status is not 2xx; to a request for events, its body may be one event."""
    text = body.decode(errors="replace")
    for line in text.splitlines():
        if line.startswith("data:"):
            text = line.removeprefix("data:")
    try:
        said = from_json(text)
    except ValueError:
        said = {}
    return error_of(said, endpoint, status, seconds_to_wait(retry_after))


def error_of(said: Any, endpoint: Endpoint, status: int | None = None, wait: float | None = None) -> WootzError:
    """``status`` is None for an event in a stream, or a task that failed."""

    def text(key: str) -> str:
        value = said.get(key) if isinstance(said, dict) else None
        value = value if isinstance(value, str) else ""
        return endpoint.conceal(value)[:MAX_MESSAGE_CHARS]

    code, message, model = text("code"), text("message"), f'model "{endpoint.name}": DashScope'
    told = f" (its request {request_id})" if (request_id := text("request_id")) else ""
    head = code.partition(".")[0]
    if head == "Throttling" or status == 429:
        return RateLimitError(
            f"{model}'s rate limit is reached{told}", retry_after=wait or 1.0, code="upstream_rate_limit"
        )
    operators = OPERATORS_CODES.get(head) or (status if status in OPERATORS else None)
    if operators == 404 or "model not exist" in message.lower():
        where = f" in {endpoint.region}" if endpoint.region else ""
        return UpstreamError(f"{model} does not have it{where}, or not for this account{told}", code="upstream_refused")
    if operators:
        return UpstreamError(f"{model} {OPERATORS[operators]}{told}", code="upstream_refused")
    if head == "DataInspectionFailed":
        return BadRequestError(f"{message or 'the content was refused'}{told}", code="content_filter")
    if status == 413 or code == "BadRequest.TooLarge":
        return PayloadTooLargeError(f"{message or 'the request is too large for DashScope'}{told}")
    if head in USERS_CODES or (status is not None and 400 <= status < 500 and status != 408):
        return BadRequestError(f"{message or 'DashScope refused the request'}{told}", code=code or None)
    return UpstreamError(f"{model} failed: {message or code or f'status {status}'}{told}", retry_after=wait)
