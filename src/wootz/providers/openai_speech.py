"""``/audio/speech`` of an endpoint that speaks OpenAI's protocol: the sound as it comes, whatever its format.

Who bills by the token tells the usage only in events, so those are asked for events; of the others we know the
characters. An endpoint that answers the other way than it was asked is understood too.

Source: the OpenAI API reference for speech and its stream events.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator
from decimal import Decimal
from fnmatch import fnmatchcase

from pydantic_core import from_json

from wootz.core.media import MediaRequest, SpeechChunk
from wootz.core.wire import Usage
from wootz.providers.dashscope_catalogue import MULTIMODAL_SERVICE
from wootz.providers.dashscope_wire import usage_of
from wootz.providers.endpoint import Endpoint
from wootz.providers.http import EVENTS, Http
from wootz.providers.sse import EventReader
from wootz.providers.upstream_errors import error_from_event

FORMATS = ("mp3", "opus", "aac", "flac", "wav", "pcm")
BILLED_BY_TOKEN = "gpt-*-tts*"
ITS_WORDS = {"text": "input", "format": "response_format", "rate": "speed", "instruction": "instructions"}
SAMPLE_RATE = 24_000
"""Its only one, so it has no name for it."""
ACCEPT = f"audio/*, application/octet-stream, {EVENTS}"


async def speak(http: Http, request: MediaRequest) -> AsyncGenerator[SpeechChunk, None]:
    model = http.endpoint.upstream_model
    body = {ITS_WORDS.get(name, name): value for name, value in (request.input | request.parameters).items()}
    if request.service == MULTIMODAL_SERVICE:
        body.setdefault("response_format", "pcm")  # What DashScope's clients expect from there.
    if body.get("sample_rate") == SAMPLE_RATE:
        del body["sample_rate"]
    if fnmatchcase(model, BILLED_BY_TOKEN):
        body["stream_format"] = "sse"
    usage: Usage | None = None
    async with http.response("POST", "audio/speech", body | {"model": model}, accept=ACCEPT) as response:
        events = EventReader() if response.content_type == EVENTS else None
        while piece := await response.piece():
            if events is None:
                yield SpeechChunk(audio=piece)
                continue
            try:
                for data in events.feed(piece):
                    audio, told = _read(data, http.endpoint)
                    usage = told or usage
                    if audio:
                        yield SpeechChunk(audio=audio)
            except (ValueError, TypeError, AttributeError, KeyError):
                raise http.failed("what it answered is not OpenAI's protocol", "upstream_malformed") from None
    if events is None:
        usage = Usage()
    if usage is None:
        raise http.failed("it cut its speech short", "upstream_cut_off")
    yield SpeechChunk(units=Decimal(len(request.text)), usage=usage)


def _read(data: str, endpoint: Endpoint) -> tuple[bytes, Usage | None]:
    """An event's sound, and the usage that the last one tells."""
    if data == "[DONE]":
        return b"", None
    event = from_json(data, allow_inf_nan=False)
    if error := event.get("error"):
        raise error_from_event(error, endpoint)
    match event.get("type"):
        case "speech.audio.delta":
            return base64.b64decode(event["audio"], validate=True), None
        case "speech.audio.done":
            return b"", usage_of(event.get("usage") or {})
        case _:
            return b"", None
