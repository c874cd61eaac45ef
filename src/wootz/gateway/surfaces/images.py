"""OpenAI's ``/v1/images/generations`` over any `MediaModel`: a task that one waits for.

Who goes away meanwhile has still ordered it: the task goes on, and is counted.

Source: the OpenAI API reference for images. Fields of OpenAI's that no `MediaModel` has are refused; what
OpenAI does not know (``negative_prompt``, ``seed``, ``prompt_extend``, …) goes on.
"""

from __future__ import annotations

import base64
import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from wootz.core import BadRequestError, UnsupportedError, UpstreamError
from wootz.core.media import MediaRequest, MediaTask
from wootz.core.wire import now
from wootz.gateway.entrance import router_with_key
from wootz.gateway.gateway import Gateway
from wootz.gateway.tasks import TaskRow, failure_of

REFUSED = ("quality", "style", "background", "moderation", "output_compression", "output_format", "partial_images")
INPUTS = ("negative_prompt", "images", "ref_img", "base_image_url", "mask_image_url", "function")
"""What says what is to be made; the rest says how."""


class MediaBody(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())

    model: str = Field(min_length=1, max_length=256)
    user: str | None = None


class ImageBody(MediaBody):
    prompt: str = Field(min_length=1)
    n: Annotated[int, Field(ge=1, le=10)] | None = None
    size: str | None = None
    response_format: Literal["url", "b64_json"] = "url"

    def to_media(self) -> MediaRequest:
        extra = {**(self.model_extra or {})}
        for field in REFUSED:
            if extra.pop(field, None) not in (None, "auto"):
                raise UnsupportedError(f'"{field}" is not supported by any model that makes pictures', param=field)
        if extra.pop("stream", None):
            raise UnsupportedError("pictures do not stream", param="stream")
        given = {"prompt": self.prompt} | {name: extra.pop(name) for name in INPUTS if name in extra}
        parameters = extra | ({"n": self.n} if self.n else {})
        if self.size not in (None, "auto"):
            if not re.fullmatch(r"\d{2,5}[x*]\d{2,5}", self.size):
                raise BadRequestError('"size" must be WIDTHxHEIGHT', param="size")
            parameters["size"] = self.size.replace("x", "*")
        return MediaRequest(model=self.model, user=self.user, input=given, parameters=parameters)


def router(gateway: Gateway) -> APIRouter:
    router = router_with_key(gateway, "inference", tags=["media"])

    @router.post("/v1/images/generations")
    async def images(request: Request, body: ImageBody) -> JSONResponse:
        row, urls = await made(gateway, request, body.to_media(), "/v1/images/generations")
        data: list[dict[str, Any]] = [{"url": url} for url in urls]
        if body.response_format == "b64_json":
            data = [{"b64_json": base64.b64encode(await gateway.tasks.download(row, url)).decode()} for url in urls]
        return JSONResponse({"created": now(), "data": data})

    return router


async def made(gateway: Gateway, request: Request, media: MediaRequest, route: str) -> tuple[TaskRow, list[str]]:
    """The task when it has ended, and where its results are. Raises `WootzError`."""
    key = request.state.key
    row = await gateway.tasks.submit(key, media, request_id=request.state.request_id, route=route)
    await gateway.tasks.wait(row.id)
    row = await gateway.tasks.get(key, row.id)
    if row.status == "FAILED":
        raise failure_of(MediaTask(id=row.upstream_id, status="FAILED", output=row.output))
    if not row.urls:
        raise UpstreamError(f"the task ended as {row.status}, with nothing made", code="task_failed")
    return row, row.urls
