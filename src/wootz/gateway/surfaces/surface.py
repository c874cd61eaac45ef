"""What a surface is: another protocol at the front door. It is one file, and has three parts:

- *in*: its own request, a strict pydantic type, becomes a `ChatRequest` (`chat_request`), which then walks the same
  path as every other. What the protocol has and we don't is a 400 that names the field.
- *out*: a `Telling` is fed with the answer's chunks and tells them in the protocol's words, as events while they come
  or whole at the end. One state machine serves both, so they can't differ.
- *wrong*: ``error_body`` words an error. Give it to `router_with_key`, and every failure of the surface's routes before
  the first chunk has that shape; later ones are the telling's `failed`.

    router = router_with_key(gateway, "inference", error_body=error_body, tags=["messages"])

    @router.post("/v1/messages")
    async def create(request: Request, body: MessagesRequest) -> Response:
        chat = body.to_chat()
        set_out(request, chat)
        chunks = gateway.chat(request.state.key, chat, request_id=…, route="/v1/messages")
        return tell(chunks, MessagesTelling(body.model), stream=body.stream)

No surface knows a provider. Per chunk there are plain dicts and msgspec, no validation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
from pydantic import ValidationError
from starlette.responses import Response

from wootz.core import UpstreamError, WootzError
from wootz.core.wire import ChatChunk, ChatRequest
from wootz.gateway.answers import StreamedAnswer, WholeAnswer
from wootz.gateway.errors import bad_request

Event = dict[str, Any]

encode = msgspec.json.encode


class Telling(ABC):
    """One answer as a protocol tells it. Made for one request, fed with its chunks in their order."""

    @abstractmethod
    def chunk(self, chunk: ChatChunk) -> list[Event]:
        """The events that tell this chunk; the very first call opens the answer. The last chunk has the usage."""

    @abstractmethod
    def end(self) -> list[Event]:
        """The events after the last chunk."""

    @abstractmethod
    def failed(self, error: WootzError) -> list[Event]:
        """The events of an answer that fails after its first chunk."""

    @abstractmethod
    def whole(self) -> dict[str, Any]:
        """After `end`: all of it as one body."""

    def frame(self, event: Event) -> bytes:
        """One event over the wire. OpenAI and Anthropic name its type twice."""
        return b"event: %s\ndata: %s\n\n" % (event["type"].encode(), encode(event))


class ToldAnswer(StreamedAnswer):
    """A stream of the telling's events."""

    def __init__(self, chunks: AsyncGenerator[ChatChunk, None], telling: Telling) -> None:
        super().__init__(chunks, include_usage=True)
        self.telling = telling

    def events(self, chunk: ChatChunk) -> bytes:
        return self._frames(self.telling.chunk(chunk))

    def is_last(self, chunk: ChatChunk) -> bool:
        """A surface may put the answer away when its chunks are over, which comes before its end is told."""
        return False

    def last_events(self) -> bytes:
        return self._frames(self.telling.end())

    def error_events(self, error: WootzError) -> bytes:
        return self._frames(self.telling.failed(error))

    def _frames(self, events: list[Event]) -> bytes:
        return b"".join(map(self.telling.frame, events))


def tell(chunks: AsyncGenerator[ChatChunk, None], telling: Telling, *, stream: bool | None) -> Response:
    """The answer to the client, streamed or whole; who goes away stops the model's work."""
    return ToldAnswer(chunks, telling) if stream else WholeAnswer(_whole(chunks, telling))


async def tell_whole(chunks: AsyncGenerator[ChatChunk, None], telling: Telling) -> dict[str, Any]:
    """Raises `UpstreamError` for an answer without its end."""
    complete = False
    async with aclosing(chunks):
        async for chunk in chunks:
            telling.chunk(chunk)
            complete = complete or chunk.usage is not None
    if not complete:
        raise UpstreamError("the answer broke off before its end", hint="try again")
    telling.end()
    return telling.whole()


async def _whole(chunks: AsyncGenerator[ChatChunk, None], telling: Telling) -> bytes:
    return encode(await tell_whole(chunks, telling))


def chat_request(fields: dict[str, Any], origins: Sequence[str] = ()) -> ChatRequest:
    """The request that the surface's own means, without the fields that are None.

    ``origins[i]`` is what the surface calls ``messages[i]``, so that an error names what the client has written.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        return ChatRequest.model_validate(given)
    except ValidationError as error:
        wrong = bad_request([{**one, "loc": ("body", *one["loc"])} for one in error.errors()], given)
        for number, origin in enumerate(origins):
            here = f"messages[{number}]"
            if wrong.param and wrong.param.startswith(here):
                wrong.param = wrong.param.replace(here, origin, 1)
                wrong.message = wrong.message.replace(here, origin)
                wrong.args = (wrong.message,)
                break
        raise wrong from None
