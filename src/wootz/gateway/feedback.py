"""``POST /v1/feedback``: what a user thought of an answer, by its ``x-request-id``. Migrations and reports read it."""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from wootz.core import NotFoundError
from wootz.gateway.gateway import Gateway
from wootz.telemetry.feedback import rate


class Feedback(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    request_id: str = Field(pattern=r"^[\x21-\x7e]{1,200}$", description="x-request-id of the answer.")
    rating: float = Field(ge=0, le=1, description="0 is useless, 1 is all that was wanted; a thumb is 0 or 1.")
    label: str | None = Field(
        default=None, pattern=r"^[\w .-]{1,64}$", description="A word for what was good or wrong, to count by."
    )


def add_routes(router: APIRouter, gateway: Gateway) -> None:
    @router.post("/v1/feedback", status_code=204, response_class=Response)
    async def feedback(request: Request, body: Feedback) -> None:
        """Rate an answer. Only the key that got it may; a later rating takes the place of an earlier one."""
        key = request.state.key
        unknown = NotFoundError("there is no answer by this request id", param="request_id", code="request_not_found")
        try:
            record = await gateway.telemetry.ledger.get(body.request_id)
        except NotFoundError:
            raise unknown from None
        if key is not None and record.key_id != key.id:
            raise unknown
        await rate(gateway.database, body.request_id, body.rating, body.label, datetime.now(UTC))
