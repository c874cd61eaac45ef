"""DashScope's task endpoints at the front door, over any `MediaModel`: hand in, ask, list, cancel.

Ids are ours: the endpoint's are known to everybody who shares its account, these only to the key that made the task.

Source: the DashScope references for image and video synthesis, recorded speech recognition, and "manage asynchronous
tasks" (https://www.alibabacloud.com/help/en/model-studio/manage-asynchronous-tasks).
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from wootz.core import BadRequestError
from wootz.core.media import MediaRequest, TaskStatus
from wootz.gateway.entrance import router_with_key
from wootz.gateway.gateway import Gateway
from wootz.gateway.surfaces.dashscope_request import Body, wants_events
from wootz.gateway.surfaces.dashscope_telling import ERROR_RESPONSES, error_body
from wootz.gateway.surfaces.speech import NativeSpeech
from wootz.gateway.tasks import TaskRow

SERVICES = (
    "aigc/text2image/image-synthesis",
    "aigc/image2image/image-synthesis",
    "aigc/image-generation/generation",
    "aigc/video-generation/video-synthesis",
    "aigc/image2video/video-synthesis",
    "audio/asr/transcription",
)
SPEECH = "audio/tts/SpeechSynthesizer"
"""Is made while one waits, unlike the others."""


class TaskBody(Body):
    input: dict[str, Any]
    parameters: dict[str, Any] = Field(default_factory=dict)

    def to_media(self, service: str) -> MediaRequest:
        return MediaRequest(model=self.model, input=self.input, parameters=self.parameters, service=service)


def router(gateway: Gateway) -> APIRouter:
    router = router_with_key(
        gateway, "inference", error_body=error_body, responses=ERROR_RESPONSES, prefix="/api/v1", tags=["dashscope"]
    )

    def add(service: str) -> None:
        @router.post(f"/services/{service}", name=service)
        async def submit(request: Request, body: TaskBody) -> Response:
            if service != SPEECH and request.headers.get("x-dashscope-async", "").lower() != "enable":
                raise BadRequestError(
                    "this is made by a task, which takes its time", hint="send the header X-DashScope-Async: enable"
                )
            return await hand_in(request, body, service)

    for service in (*SERVICES, SPEECH):
        add(service)

    async def hand_in(request: Request, body: TaskBody, service: str) -> Response:
        request_id = request.state.request_id
        media, route = body.to_media(service), f"/api/v1/services/{service}"
        if service == SPEECH and wants_events(request):
            return NativeSpeech.of(gateway, request, media, route)
        row = await gateway.tasks.submit(request.state.key, media, request_id=request_id, route=route)
        if service == SPEECH:
            return JSONResponse({"output": made(row), "usage": row.usage, "request_id": request_id})
        return JSONResponse({"output": {"task_id": row.id, "task_status": row.status}, "request_id": request_id})

    @router.get("/tasks")
    async def list_tasks(
        request: Request,
        page_no: int = Query(1, ge=1, le=10**6),
        page_size: int = Query(10, ge=1, le=100),
        status: TaskStatus | None = None,
        model_name: str | None = None,
        start_time: str | None = Query(None, description="YYYYMMDDhhmmss, in UTC"),
        end_time: str | None = Query(None, description="YYYYMMDDhhmmss, in UTC"),
    ) -> JSONResponse:
        """The key's own, newest first."""
        rows, total = await gateway.tasks.list(
            request.state.key,
            page=page_no,
            size=page_size,
            status=status,
            model=model_name,
            since=_instant(start_time, "start_time"),
            until=_instant(end_time, "end_time"),
        )
        return JSONResponse(
            {
                "data": [_listed(row) for row in rows],
                "total": total,
                "total_page": math.ceil(total / page_size),
                "page_no": page_no,
                "page_size": page_size,
                "request_id": request.state.request_id,
            }
        )

    @router.get("/tasks/{task_id}")
    async def get_task(request: Request, task_id: str) -> JSONResponse:
        row = await gateway.tasks.get(request.state.key, task_id)
        answer: dict[str, Any] = {"request_id": request.state.request_id, "output": told(row)}
        if row.usage and row.state == "SUCCEEDED":
            answer["usage"] = row.usage
        return JSONResponse(answer)

    @router.post("/tasks/{task_id}/cancel")
    async def cancel_task(request: Request, task_id: str) -> JSONResponse:
        """Only one that still waits."""
        await gateway.tasks.cancel(request.state.key, task_id)
        return JSONResponse({"request_id": request.state.request_id})

    return router


def made(row: TaskRow) -> dict[str, Any]:
    """Without the task: what was made while the client waited."""
    return {name: value for name, value in row.output.items() if name not in ("task_id", "task_status")}


def told(row: TaskRow) -> dict[str, Any]:
    """The endpoint's own words, under our id. They are kept back until the task's record is left."""
    here = {"task_id": row.id, "task_status": row.state, "submit_time": _time(row.submitted_at)}
    if row.ended_at is not None:
        here["end_time"] = _time(row.ended_at)
    return (row.output if row.ended and row.state == row.status else {}) | here


def _listed(row: TaskRow) -> dict[str, Any]:
    listed = {
        "task_id": row.id,
        "request_id": row.request_id,
        "model_name": row.model,
        "status": row.state,
        "start_time": _milliseconds(row.submitted_at),
    }
    return listed | ({"end_time": _milliseconds(row.ended_at)} if row.ended_at else {})


def _time(instant: datetime) -> str:
    return instant.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def _milliseconds(instant: datetime) -> int:
    return int(instant.timestamp() * 1000)


def _instant(text: str | None, name: str) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.strptime(text, "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        raise BadRequestError(f'"{name}" must be a time as 20261128235959', param=name) from None
