"""OpenAI's ``/v1/audio/speech`` over any model that speaks, and speech as DashScope streams it.

What can be heard while it is made goes on as it comes: as sound, or as events (``stream_format``). The rest is made
first, as a task that one waits for (`images.made`): formats that the model does not stream, and WAV where nobody asks
for a stream, since only the whole file can say how long it is.

Source: the OpenAI API reference for speech and its stream events; the DashScope references of Qwen-TTS and CosyVoice.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from wootz.core import LanguageModel, WootzError
from wootz.core.media import MediaModel, MediaRequest, SpeechChunk, SpeechModel
from wootz.gateway.answers import StreamedAnswer
from wootz.gateway.entrance import router_with_key, set_out
from wootz.gateway.gateway import Gateway
from wootz.gateway.surfaces.dashscope_telling import dashscope_usage, error_body, frame
from wootz.gateway.surfaces.images import MediaBody, made
from wootz.gateway.surfaces.surface import Event, encode

ROUTE = "/v1/audio/speech"
KINDS = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
SOUND: dict[int | str, dict[str, Any]] = {
    200: {
        "description": 'The sound, or with "stream_format": "sse" its events.',
        "content": {kind: {} for kind in (*KINDS.values(), "application/octet-stream", "text/event-stream")},
    }
}


class SpeechBody(MediaBody):
    input: str = Field(min_length=1, max_length=4096)
    voice: str = Field(min_length=1, max_length=256)
    response_format: str | None = Field(default=None, max_length=10)
    stream_format: Literal["sse", "audio"] | None = None

    def to_media(self, format: str | None) -> MediaRequest:
        given = {"text": self.input, "voice": self.voice} | (self.model_extra or {})
        return MediaRequest(model=self.model, user=self.user, input=given | ({"format": format} if format else {}))

    def streamed(self, model: LanguageModel | None) -> str | None:
        """The format in which the model streams it; None where it is made first."""
        wanted = self.response_format
        if not isinstance(model, SpeechModel):
            return None
        if not isinstance(model, MediaModel):
            return wanted or "mp3"
        if self.stream_format is None:
            return wanted if wanted in model.speech_formats and wanted != "wav" else None
        wanted = wanted or ("mp3" if "mp3" in model.speech_formats else "wav")
        return wanted if self.stream_format == "sse" or wanted in model.speech_formats else None


def router(gateway: Gateway) -> APIRouter:
    router = router_with_key(gateway, "inference", tags=["media"])

    @router.post(ROUTE, responses=SOUND, response_class=Response)
    async def speech(request: Request, body: SpeechBody) -> Response:
        format = body.streamed(gateway.models.get(body.model))
        media = body.to_media(format or body.response_format)
        if format is None:
            row, urls = await made(gateway, request, media, ROUTE)
            sound = await gateway.tasks.download(row, urls[0])
            return Response(sound, media_type=_kind(sound, body.response_format))
        chunks = _spoken(gateway, request, media, ROUTE)
        return SpeechEvents(chunks) if body.stream_format == "sse" else Sound(chunks, format)

    return router


class Sound(StreamedAnswer):
    """The bytes of a file."""

    def __init__(self, chunks: AsyncGenerator[SpeechChunk, None], format: str) -> None:
        self.media_type = KINDS.get(format, "application/octet-stream")
        super().__init__(chunks, include_usage=True)

    def events(self, chunk: SpeechChunk) -> bytes:
        return chunk.audio

    def last_events(self) -> bytes:
        return b""

    def error_events(self, error: WootzError) -> None:
        return None


class SpeechEvents(StreamedAnswer):
    """OpenAI's events."""

    def __init__(self, chunks: AsyncGenerator[SpeechChunk, None]) -> None:
        super().__init__(chunks, include_usage=True)

    def events(self, chunk: SpeechChunk) -> bytes:
        told = b""
        if chunk.audio:
            told = _event({"type": "speech.audio.delta", "audio": base64.b64encode(chunk.audio).decode()})
        if (usage := chunk.usage) is not None:
            counts = {"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens}
            counts["total_tokens"] = usage.total_tokens
            if chunk.units:
                counts["characters"] = int(chunk.units)
            told += _event({"type": "speech.audio.done", "usage": counts})
        return told

    def last_events(self) -> bytes:
        return b""


class NativeSpeech(StreamedAnswer):
    """DashScope's events: its own as they came, but for the request's id, or what it would say of other sound."""

    def __init__(self, chunks: AsyncGenerator[SpeechChunk, None], request_id: str) -> None:
        super().__init__(chunks, include_usage=True)
        self.request_id = request_id
        self._number = 0

    @classmethod
    def of(cls, gateway: Gateway, request: Request, media: MediaRequest, route: str) -> NativeSpeech:
        return cls(_spoken(gateway, request, media, route), request.state.request_id)

    def events(self, chunk: SpeechChunk) -> bytes:
        return self._frame((chunk.event or _native(chunk)) | {"request_id": self.request_id})

    def last_events(self) -> bytes:
        return b""

    def error_events(self, error: WootzError) -> bytes:
        return self._frame(error_body(error, self.request_id) | {"status": error.status})

    def _frame(self, event: Event) -> bytes:
        self._number += 1
        return frame(self._number, event)


def _spoken(gateway: Gateway, request: Request, media: MediaRequest, route: str) -> AsyncGenerator[SpeechChunk, None]:
    media.stream = True
    set_out(request, media)
    return gateway.speak(request.state.key, media, request_id=request.state.request_id, route=route)


def _native(chunk: SpeechChunk) -> Event:
    audio = {"data": base64.b64encode(chunk.audio).decode()}
    if chunk.usage is None:
        return {"output": {"type": "sentence-synthesis", "finish_reason": "null", "audio": audio}}
    usage = dashscope_usage(chunk.usage) | {"characters": int(chunk.units)}
    return {"output": {"finish_reason": "stop", "audio": audio}, "usage": usage}


def _event(event: Event) -> bytes:
    return b"data: %s\n\n" % encode(event)


def _kind(sound: bytes, asked: str | None) -> str:
    """What it is: some models make WAV whatever is asked."""
    if sound.startswith(b"RIFF"):
        return KINDS["wav"]
    if sound.startswith((b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2")):
        return KINDS["mp3"]
    return KINDS.get(asked or "wav", "application/octet-stream")
