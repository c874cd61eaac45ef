"""DashScope's speech as a `SpeechModel`: heard while it is made.

Two services make it, and tell it by server-sent events with a piece of the sound in base64, the last with the usage and
where the whole lies. Qwen-TTS makes PCM only (16 bits, mono, 24 kHz), CosyVoice and Qwen-Audio what ``format`` asks.

Source: the references of Qwen-TTS and of the CosyVoice HTTP API, and the dashscope SDK 2.0.2.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from pydantic_core import from_json

from wootz.core import UnsupportedError, UpstreamError
from wootz.core.media import MediaRequest, SpeechChunk
from wootz.providers.dashscope_catalogue import SPEECH_SERVICE
from wootz.providers.dashscope_http import SSE
from wootz.providers.dashscope_tasks import DashScopeMediaModel, decimal
from wootz.providers.endpoint import Endpoint

SAMPLE_RATE = 24_000
"""Of Qwen-TTS, and what OpenAI's clients take PCM for."""
ITS_WORDS = {"speed": "rate", "instructions": "instruction"}


class DashScopeSpeechModel(DashScopeMediaModel):
    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
        self._has_formats = self.facts.service == SPEECH_SERVICE
        self.speech_formats = ("mp3", "pcm", "wav", "opus") if self._has_formats else ("pcm", "wav")

    def speak(self, request: MediaRequest) -> AsyncGenerator[SpeechChunk, None]:
        wanted = request.input.get("format")
        if request.service is None and wanted not in self.speech_formats:
            formats = ", ".join(self.speech_formats)
            raise UnsupportedError(f'model "{self.name}" streams {formats}', param="response_format")
        needs_header = request.service is None and wanted == "wav" and not self._has_formats
        return self._http.in_time(self._speak(request, WAV_HEADER if needs_header else b""))

    async def _speak(self, request: MediaRequest, head: bytes) -> AsyncGenerator[SpeechChunk, None]:
        service, body = self._asked(request)
        usage: dict[str, Any] = {}
        last: SpeechChunk | None = None
        async with aclosing(self._http.events(f"services/{service}", body, SSE)) as events:
            async for data in events:
                try:
                    event = from_json(data, allow_inf_nan=False)
                    if not isinstance(output := event.get("output"), dict):
                        raise self._http.failure(event) if event.get("code") else ValueError("an event of nothing")
                    encoded = (output.get("audio") or {}).get("data") or ""
                    audio = base64.b64decode(encoded, validate=True)
                    has_ended = output.get("finish_reason") not in (None, "", "null")
                    if told := event.get("usage"):
                        usage |= told
                except (ValueError, TypeError, AttributeError):
                    raise self._http.malformed() from None
                if audio:
                    audio, head = head + audio, b""
                chunk = SpeechChunk(audio=audio, event={"output": output} | ({"usage": told} if told else {}))
                if has_ended:
                    last = chunk
                else:
                    yield chunk
        if last is None:
            raise UpstreamError(f'model "{self.name}": DashScope cut its speech short', code="upstream_cut_off")
        yield replace(last, units=decimal(usage.get("characters") or 0), usage=self._tokens(usage))

    def _in_its_words(self, input: dict[str, Any]) -> dict[str, Any]:
        if self._has_formats:
            return {"sample_rate": SAMPLE_RATE} | {ITS_WORDS.get(name, name): value for name, value in input.items()}
        if input.get("speed") not in (None, 1):
            raise UnsupportedError(f'model "{self.name}" speaks at one speed', param="speed")
        return {name: value for name, value in input.items() if name not in ("format", "speed")}


def _wav_header() -> bytes:
    """Of a file whose length is not known yet, which is then as long as can be told: players read to its end."""
    unknown, num_bytes = 0xFFFFFFFF, 2
    form = struct.pack("<IHHIIHH", 16, 1, 1, SAMPLE_RATE, SAMPLE_RATE * num_bytes, num_bytes, 8 * num_bytes)
    length = struct.pack("<I", unknown)
    return b"RIFF" + length + b"WAVEfmt " + form + b"data" + length


WAV_HEADER = _wav_header()
