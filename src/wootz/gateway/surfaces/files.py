"""OpenAI's Files API, ``/v1/files``: what goes into a batch, and what comes out of it.

Source: https://platform.openai.com/docs/api-reference/files.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Query, Request, UploadFile
from fastapi.responses import Response

from wootz.core import UnsupportedError
from wootz.gateway.entrance import router_with_key
from wootz.gateway.gateway import Gateway
from wootz.gateway.surfaces.batch_lines import check_file
from wootz.gateway.surfaces.file_store import FileStore
from wootz.gateway.surfaces.ranges import content_response
from wootz.gateway.surfaces.response_store import owner_of

ROUTE = "/v1/files"
SHORTEST_LIFE, LONGEST_LIFE = 3600, 2_592_000


def router(gateway: Gateway) -> APIRouter:
    router = router_with_key(gateway, "inference", tags=["files"])
    store = FileStore.of(gateway)
    check = partial(check_file, max_bytes=gateway.config.server.max_body_bytes)

    @router.post(ROUTE)
    async def upload_file(
        request: Request,
        file: Annotated[UploadFile, File()],
        purpose: Annotated[str, Form()],
        anchor: Annotated[Literal["created_at"] | None, Form(alias="expires_after[anchor]")] = None,
        seconds: Annotated[int | None, Form(alias="expires_after[seconds]", ge=SHORTEST_LIFE, le=LONGEST_LIFE)] = None,
    ) -> dict[str, Any]:
        """JSON lines, each a request of a batch."""
        if purpose != "batch":
            raise UnsupportedError('files are for batches: the purpose is "batch"', param="purpose")
        owner, name = owner_of(request.state.key), file.filename or ""
        stored = await store.add(owner, file.file, filename=name, purpose=purpose, check=check, expires_after=seconds)
        return stored.to_openai()

    @router.get(ROUTE)
    async def list_files(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
        after: str | None = None,
        purpose: str | None = None,
        order: Literal["asc", "desc"] = "desc",
    ) -> dict[str, Any]:
        found = await store.list(
            owner_of(request.state.key), limit=limit + 1, after=after, purpose=purpose, newest_first=order == "desc"
        )
        return page([file.to_openai() for file in found], limit)

    @router.get(ROUTE + "/{file_id}")
    async def get_file(request: Request, file_id: str) -> dict[str, Any]:
        return (await store.get(owner_of(request.state.key), file_id)).to_openai()

    @router.get(
        ROUTE + "/{file_id}/content", response_class=Response, responses={200: {"content": {"application/jsonl": {}}}}
    )
    async def get_content(request: Request, file_id: str) -> Response:
        """The bytes, as they came."""
        file = await store.get(owner_of(request.state.key), file_id)
        return content_response(
            request,
            await store.open(file),
            etag=file.id,
            filename=file.filename,
            media_type="application/jsonl",
            headers={"x-content-type-options": "nosniff"},
        )

    @router.delete(ROUTE + "/{file_id}")
    async def delete_file(request: Request, file_id: str) -> dict[str, Any]:
        await store.delete(owner_of(request.state.key), file_id)
        return {"id": file_id, "object": "file", "deleted": True}

    return router


def page(found: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    """OpenAI's list, of one object more than are shown."""
    shown = found[:limit]
    ends = {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {"first_id": None, "last_id": None}
    return {"object": "list", "data": shown, **ends, "has_more": len(found) > limit}
