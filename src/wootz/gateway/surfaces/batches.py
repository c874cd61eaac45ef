"""OpenAI's Batch API, ``/v1/batches``: a file of requests, answered when there is time, within a day.

Source: https://platform.openai.com/docs/api-reference/batch.
"""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from wootz.core import BadRequestError, UnsupportedError
from wootz.gateway.entrance import router_with_key
from wootz.gateway.gateway import Gateway
from wootz.gateway.surfaces.batch_lines import ENDPOINTS
from wootz.gateway.surfaces.batch_store import BatchStore
from wootz.gateway.surfaces.file_store import FileStore
from wootz.gateway.surfaces.files import LONGEST_LIFE, SHORTEST_LIFE, page
from wootz.gateway.surfaces.response_store import owner_of
from wootz.gateway.surfaces.responses import Metadata

ROUTE = "/v1/batches"
WINDOW_SECONDS = 86_400


class OutputLife(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    anchor: Literal["created_at"]
    seconds: int = Field(ge=SHORTEST_LIFE, le=LONGEST_LIFE)


class BatchRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    input_file_id: str
    endpoint: str
    completion_window: Literal["24h"]
    metadata: Annotated[Metadata, Field(max_length=16)] | None = None
    output_expires_after: OutputLife | None = None


def router(gateway: Gateway) -> APIRouter:
    router = router_with_key(gateway, "inference", tags=["batches"])
    store, files = BatchStore(gateway.database, gateway.kept), FileStore.of(gateway)

    @router.post(ROUTE)
    async def create_batch(request: Request, body: BatchRequest) -> dict[str, Any]:
        """It is checked and begun in the background."""
        owner = owner_of(request.state.key)
        if body.endpoint not in ENDPOINTS:
            raise UnsupportedError(f"a batch is of requests to {', '.join(ENDPOINTS)}", param="endpoint")
        file = await files.get(owner, body.input_file_id)
        if file.purpose != "batch":
            raise BadRequestError('the input file\'s purpose has to be "batch"', param="input_file_id")
        now = int(time.time())
        batch = {
            "id": f"batch_{uuid.uuid4().hex}",
            "object": "batch",
            "endpoint": body.endpoint,
            "errors": None,
            "input_file_id": file.id,
            "completion_window": body.completion_window,
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": now,
            "expires_at": now + WINDOW_SECONDS,
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": body.metadata,
        }
        if body.output_expires_after is not None:
            batch["output_expires_after"] = body.output_expires_after.model_dump()
        await store.create(owner, batch)
        return batch

    @router.get(ROUTE)
    async def list_batches(
        request: Request, limit: Annotated[int, Query(ge=1, le=100)] = 20, after: str | None = None
    ) -> dict[str, Any]:
        return page(await store.list(owner_of(request.state.key), limit=limit + 1, after=after), limit)

    @router.get(ROUTE + "/{batch_id}")
    async def get_batch(request: Request, batch_id: str) -> dict[str, Any]:
        return await store.get(owner_of(request.state.key), batch_id)

    @router.post(ROUTE + "/{batch_id}/cancel")
    async def cancel_batch(request: Request, batch_id: str) -> dict[str, Any]:
        """What has begun is finished, and what was answered is given out."""
        return await store.cancel(owner_of(request.state.key), batch_id)

    return router
