"""DashScope's image, video, speech and transcription models as a `MediaModel`.

Nearly all are tasks: handed in with the header ``X-DashScope-Async: enable``, asked for at ``/tasks/{id}``. Speech is
made while one waits, and is then a task that has ended when it is handed in (as it is made: `dashscope_speech`).
Results lie in DashScope's storage for a day.

Source: the DashScope references for image, video, speech synthesis, recorded speech recognition and asynchronous tasks.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, cast, get_args
from urllib.parse import parse_qs, urlsplit

import aiohttp

from wootz.core import LanguageModel, UnsupportedError
from wootz.core.media import ENDED, MediaRequest, MediaTask, TaskStatus, Unit
from wootz.core.wire import Usage
from wootz.providers.dashscope_catalogue import MULTIMODAL_SERVICE, SPEECH_SERVICE, TASK_KINDS, facts_of
from wootz.providers.dashscope_http import ASYNC, DashScopeHttp
from wootz.providers.dashscope_wire import usage_of
from wootz.providers.endpoint import Endpoint
from wootz.providers.public_addresses import PublicResolver, is_private_literal
from wootz.providers.regions import check_region

ASYNCHRONOUS = (
    "aigc/text2image/image-synthesis",
    "aigc/image2image/image-synthesis",
    "aigc/image-generation/generation",
    "aigc/video-generation/video-synthesis",
    "aigc/image2video/video-synthesis",
    "audio/asr/transcription",
)
SYNCHRONOUS = (MULTIMODAL_SERVICE, SPEECH_SERVICE)
KEPT = timedelta(hours=24)
MAX_RESULT_BYTES = 256 * 2**20
DOWNLOAD_SECONDS = 120.0

_TASK_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


class DashScopeMediaModel(LanguageModel):
    """A `MediaModel`; chats, embeddings and the like are refused as any `LanguageModel` refuses what it can't do."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.name = endpoint.name
        self.upstream_model = endpoint.upstream_model
        self.facts = facts_of(endpoint.upstream_model)
        assert self.facts.kind in TASK_KINDS
        self._http = DashScopeHttp(endpoint)
        self.provider = self._http.host

    async def submit(self, request: MediaRequest) -> MediaTask:
        service, body = self._asked(request)
        headers = ASYNC if service in ASYNCHRONOUS else None
        answer = await self._http.ask(f"services/{service}", body, headers)
        if service in SYNCHRONOUS:
            answer["output"] = {"task_status": "SUCCEEDED", **(answer.get("output") or {})}
        return self._task(answer)

    async def fetch(self, task_id: str) -> MediaTask:
        return self._task(await self._http.ask(f"tasks/{task_id}", method="GET"))

    async def cancel(self, task_id: str) -> None:
        await self._http.ask(f"tasks/{task_id}/cancel")

    async def download(self, url: str) -> bytes:
        """From the endpoint's own host, or by https from a public address: what an endpoint answers must not lead us
        into our network."""
        address = urlsplit(url)
        is_own = address.hostname == self._http.host
        if address.scheme != "https" and (address.scheme != "http" or not is_own):
            raise self._http.failed("a result's address is not one of DashScope's", "upstream_malformed")
        if not is_own and is_private_literal(address.hostname or ""):
            raise self._http.failed("a result's address is not a public one", "upstream_malformed")
        content = bytearray()
        timeout = aiohttp.ClientTimeout(total=DOWNLOAD_SECONDS)
        try:
            # The store needs no key: its addresses are signed, and ours is not for it.
            async with aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(resolver=None if is_own else PublicResolver()),
                cookie_jar=aiohttp.DummyCookieJar(), timeout=timeout, auto_decompress=False,
            ) as store:  # fmt: skip
                async with store.get(url, allow_redirects=False) as response:
                    if response.status != 200:
                        raise self._http.failed(f"a result is not there (status {response.status})", "upstream_gone")
                    async for piece in response.content.iter_any():
                        content += piece
                        if len(content) > MAX_RESULT_BYTES:
                            raise self._http.failed("a result is too large", "upstream_too_large")
        except (aiohttp.ClientError, TimeoutError, OSError):
            raise self._http.failed("a result cannot be fetched", "upstream_unreachable") from None
        return bytes(content)

    async def close(self) -> None:
        await self._http.close()

    def _asked(self, request: MediaRequest) -> tuple[str, dict[str, Any]]:
        """The service, and what it is asked."""
        check_region(self._http.endpoint)
        service = request.service or self.facts.service
        if service not in ASYNCHRONOUS and service not in SYNCHRONOUS:
            raise UnsupportedError(f'DashScope makes nothing at "{service[:80]}"', param="service")
        input = request.input if request.service else self._in_its_words(request.input)
        return service, {"model": self.upstream_model, "input": input, "parameters": request.parameters}

    def _in_its_words(self, input: dict[str, Any]) -> dict[str, Any]:
        if not self.facts.service.endswith("image-generation/generation") or "prompt" not in input:
            return input
        rest = {key: value for key, value in input.items() if key != "prompt"}
        return rest | {"messages": [{"role": "user", "content": [{"text": input["prompt"]}]}]}

    def _task(self, answer: dict[str, Any]) -> MediaTask:
        output, usage = answer.get("output"), answer.get("usage") or {}
        if not isinstance(output, dict) or not isinstance(usage, dict):
            raise self._http.malformed()
        task_id, status = output.get("task_id", ""), output.get("task_status")
        if status not in get_args(TaskStatus) or not isinstance(task_id, str):
            raise self._http.malformed()
        if status not in ENDED and not _TASK_ID.fullmatch(task_id):  # It becomes a part of a path.
            raise self._http.malformed()
        urls = tuple(_urls(output))
        return MediaTask(
            id=task_id,
            status=cast(TaskStatus, status),
            output=output,
            usage=usage,
            unit=_UNITS[self.facts.kind],
            units=_units(self.facts.kind, output, usage) if status == "SUCCEEDED" else Decimal(0),
            tokens=self._tokens(usage) if self.facts.kind == "speech" else Usage(),
            urls=urls,
            expires_at=min((_expiry(url) for url in urls), default=None) if status == "SUCCEEDED" else None,
        )

    def _tokens(self, usage: dict[str, Any]) -> Usage:
        try:
            return usage_of(usage)
        except (ValueError, TypeError, AttributeError):
            raise self._http.malformed() from None


_UNITS: dict[str, Unit] = {"image": "image", "video": "second", "transcription": "second", "speech": "character"}


def _units(kind: str, output: dict[str, Any], usage: dict[str, Any]) -> Decimal:
    """What is charged. Results that failed, in a task that succeeded as a whole, are not."""
    match kind:
        case "image":
            found = usage.get("image_count") or len([*_urls(output)])
        case "video":
            seconds = usage.get("video_duration") or usage.get("duration") or 0
            found = decimal(seconds) * decimal(usage.get("video_count") or 1)
        case "transcription":
            found = usage.get("duration") or 0
        case _:
            found = usage.get("characters") or 0
    return decimal(found)


def decimal(value: Any) -> Decimal:
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        return Decimal(0)
    return number if number.is_finite() and number > 0 else Decimal(0)


def _urls(output: dict[str, Any]) -> list[str]:
    """Every service has its own place for them."""
    found: list[Any] = [output.get("video_url")]
    for result in output.get("results") or []:
        if isinstance(result, dict):
            found += [result.get("url"), result.get("transcription_url")]
    for choice in output.get("choices") or []:
        content = (choice.get("message") or {}).get("content") if isinstance(choice, dict) else None
        found += [part.get("image") for part in content or [] if isinstance(part, dict)]
    for place in ("audio", "result"):
        if isinstance(output.get(place), dict):
            found += [output[place].get("url"), output[place].get("transcription_url")]
    return [url for url in found if isinstance(url, str) and url]


def _expiry(url: str) -> datetime:
    """Signed addresses say it themselves; the others are kept for a day."""
    for value in parse_qs(urlsplit(url).query).get("Expires", []):
        if value.isdecimal() and len(value) <= 10:
            return datetime.fromtimestamp(int(value), UTC)
    return datetime.now(UTC) + KEPT
