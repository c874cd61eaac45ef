"""`MediaModel`: what makes pictures, videos, speech and transcripts. It works on *tasks*, which take their time.

A task is handed in and has an id at once; whoever has the id asks how far it is, now or after a restart. Its results
are addresses that expire. `follow` asks until the end. Beside `LanguageModel`; a model of either kind has a name among
the same names.

`SpeechModel`: what can be heard while it speaks, without a task.

A request's shape is DashScope's, which has the most: ``input`` says what is to be made (``prompt``, ``messages``,
``text`` and ``voice``, ``file_urls``, ``img_url``), ``parameters`` say how (``size`` as "1024*1024", ``n``, ``seed``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from math import prod
from typing import Any, Literal, Protocol, runtime_checkable

from pydantic import Field

from wootz.core.errors import RateLimitError, UpstreamError, WootzError
from wootz.core.tool_wire import ModelRequest
from wootz.core.wire import Usage

TaskStatus = Literal["PENDING", "SUSPENDED", "RUNNING", "SUCCEEDED", "FAILED", "CANCELED", "UNKNOWN"]
"""``UNKNOWN`` is an end too: the endpoint does not know the task, or has forgotten it."""

Unit = Literal["image", "second", "character"]

TOKENS_PER_CHARACTER = 12
"""Of speech, at most: 50 tokens a second (Qwen-TTS), in which 4 Chinese characters are spoken, slowly."""

ENDED = frozenset[TaskStatus]({"SUCCEEDED", "FAILED", "CANCELED", "UNKNOWN"})


class MediaRequest(ModelRequest):
    input: dict[str, Any]
    parameters: dict[str, Any] = Field(default_factory=dict)
    service: str | None = None
    """Which of the endpoint's services; default: the one that the model is on. Then the ``input`` of speech may have
    OpenAI's ``format``, ``speed`` and ``instructions``."""
    stream: bool = False
    """It is to be heard while it is made."""

    @property
    def text(self) -> str:
        """What is to be spoken; empty where that is not what is asked."""
        return text if isinstance(text := self.input.get("text"), str) else ""

    @property
    def likely_units(self) -> Decimal:
        """What it will be charged by, before it is made: pictures, seconds of a film, characters to speak. (A Chinese
        one counts twice at DashScope.)"""
        if self.text:
            return Decimal(len(self.text) + sum("\u3400" <= character <= "\u9fff" for character in self.text))
        given = [self.parameters.get(name) for name in ("n", "duration")]
        return Decimal(prod(one for one in given if isinstance(one, int) and 0 < one < 10**6))

    @property
    def likely_tokens(self) -> Usage:
        """The same of speech that is charged by the token."""
        return Usage.count(len(self.text), TOKENS_PER_CHARACTER * len(self.text))


@dataclass(frozen=True, kw_only=True)
class MediaTask:
    id: str
    """The endpoint's own."""
    status: TaskStatus
    output: dict[str, Any] = field(default_factory=dict)
    """What the endpoint says of it, results and failure included."""
    usage: dict[str, Any] = field(default_factory=dict)
    units: Decimal = Decimal(0)
    """What it is charged by."""
    tokens: Usage = field(default_factory=Usage)
    """What some speech is charged by instead."""
    unit: Unit = "image"
    urls: tuple[str, ...] = ()
    expires_at: datetime | None = None
    """When the first of the addresses ceases to work; None while there are none."""

    @property
    def ended(self) -> bool:
        return self.status in ENDED


@runtime_checkable
class MediaModel(Protocol):
    name: str
    provider: str

    async def submit(self, request: MediaRequest) -> MediaTask:
        """Hand a task in. Raises `WootzError`."""
        ...

    async def fetch(self, task_id: str) -> MediaTask:
        """How far it is. A task that failed is no error here."""
        ...

    async def cancel(self, task_id: str) -> None:
        """Raises `BadRequestError` for one that is no longer waiting."""
        ...

    async def download(self, url: str) -> bytes:
        """A result. Raises `UpstreamError`, also for an address that the endpoint can't have given."""
        ...


@dataclass(frozen=True, kw_only=True)
class SpeechChunk:
    audio: bytes = b""
    event: dict[str, Any] = field(default_factory=dict)
    """As DashScope told it, ``{"output", "usage"}``; empty from other endpoints."""
    units: Decimal = Decimal(0)
    """Characters, in the last one, where the endpoint counts them."""
    usage: Usage | None = None
    """In the last one only; of zero tokens where the endpoint counts none."""


@runtime_checkable
class SpeechModel(Protocol):
    name: str
    provider: str
    speech_formats: tuple[str, ...]
    """What it can be heard in while it speaks."""

    def speak(self, request: MediaRequest) -> AsyncGenerator[SpeechChunk, None]:
        """The sound as it is made, its pieces one after the other being a whole file of the format, then what it is
        charged by. Contract as of `LanguageModel.chat`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How often to ask, in seconds: after ``first``, then each time ``factor`` times as long, up to ``longest``."""

    first: float = 5.0
    factor: float = 1.5
    longest: float = 30.0
    limit: float = 600.0
    """When to give up waiting; the task itself goes on."""


async def follow(
    model: MediaModel,
    task: MediaTask,
    pace: Pace = Pace(),
    *,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    changed: Callable[[MediaTask], Awaitable[object]] | None = None,
) -> MediaTask:
    """Ask until it has ended. A failure to ask that may pass is asked again, not before the time that it named.

    Raises `UpstreamError` with the code ``task_timeout`` at the limit.
    """
    waited, wait = 0.0, pace.first
    while not task.ended:
        if waited >= pace.limit:
            raise UpstreamError(
                f'model "{model.name}": task {task.id} has not ended in {pace.limit:g} seconds', code="task_timeout"
            )
        await sleep(wait)
        waited += wait
        wait = min(wait * pace.factor, pace.longest)
        try:
            now = await model.fetch(task.id)
        except WootzError as error:
            if not error.retryable or error.code == "upstream_refused":
                raise
            if isinstance(error, RateLimitError):
                wait = max(wait, error.retry_after)
            continue
        if now.status != task.status and changed is not None:
            await changed(now)
        task = now
    return task
