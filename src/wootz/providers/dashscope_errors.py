"""DashScope's failures, ``{"code", "message", "request_id"}``, as our errors.

The code decides, not the status: an account in arrears is a 400 there, and so is a model that is not in the region.
What the user wrote wrong comes with DashScope's own words; what is the operator's to mend does not, as with every
other endpoint. Each error names DashScope's ``request_id``, without which nobody there can help.

Source: https://help.aliyun.com/zh/model-studio/error-code and the codes of the dashscope SDK 2.0.2.
"""

from __future__ import annotations

from typing import Any

import httpx
from pydantic_core import from_json

from wootz.core import BadRequestError, PayloadTooLargeError, RateLimitError, UpstreamError, WootzError
from wootz.providers.upstream_errors import MAX_MESSAGE_CHARS, OPERATORS, read_start, retry_after

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


async def error_from_response(
    response: httpx.Response, *, model: str, region: str | None, secret: str | None
) -> WootzError:
    """For an answer whose status is not 2xx; to a request for events, its body may be one event."""
    text = (await read_start(response)).decode(errors="replace").strip()
    for line in text.splitlines():
        if line.startswith("data:"):
            text = line.removeprefix("data:")
    try:
        body = from_json(text)
    except ValueError:
        body = {}
    wait = retry_after(response)
    return error_of(body, model=model, region=region, secret=secret, status=response.status_code, wait=wait)


def error_of(
    body: Any, *, model: str, region: str | None, secret: str | None, status: int | None = None, wait: float = 1.0
) -> WootzError:
    """``status`` is None for an event in a stream, or a task that failed."""

    def text(key: str) -> str:
        value = body.get(key) if isinstance(body, dict) else None
        value = value if isinstance(value, str) else ""
        return (value.replace(secret, "***") if secret else value)[:MAX_MESSAGE_CHARS]

    code, message = text("code"), text("message")
    told = f" (DashScope request {request_id})" if (request_id := text("request_id")) else ""
    head = code.partition(".")[0]
    if head == "Throttling" or status == 429:
        return RateLimitError(
            f'model "{model}": DashScope\'s rate limit is reached{told}', retry_after=wait, code="upstream_rate_limit"
        )
    operators = OPERATORS_CODES.get(head) or (status if status in OPERATORS else None)
    if operators == 404 or "model not exist" in message.lower():
        where = f" in the region {region}" if region else ""
        return UpstreamError(
            f'model "{model}": DashScope does not have it{where}, or this account may not use it{told}',
            code="upstream_refused",
        )
    if operators:
        return UpstreamError(f'model "{model}": {OPERATORS[operators]}{told}', code="upstream_refused")
    if head == "DataInspectionFailed":
        return BadRequestError(f"{message or 'the content was refused'}{told}", code="content_filter")
    if status == 413 or code == "BadRequest.TooLarge":
        return PayloadTooLargeError(f"{message or 'the request is too large for DashScope'}{told}")
    if head in ("InvalidParameter", "BadRequest", "InvalidURL", "InvalidFile", "UnsupportedOperation") or (
        status is not None and 400 <= status < 500 and status != 408
    ):
        return BadRequestError(f"{message or 'DashScope refused the request'}{told}", code=code or None)
    return UpstreamError(f'model "{model}": DashScope failed: {message or code or f"status {status}"}{told}')
