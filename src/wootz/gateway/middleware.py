"""Around every request, as plain ASGI (nothing is buffered, streams pass as they are): its id, a net under the code
for what nobody foresaw, and the limit on its body."""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wootz.core import WootzError
from wootz.core.wire import new_id
from wootz.gateway.errors import error_response
from wootz.gateway.journey_headers import headers_of

log = logging.getLogger(__name__)

CLIENT_ID = re.compile(r"[A-Za-z0-9._:-]{1,100}")


class RequestId:
    """Gives each request an id, in ``scope["state"]`` and in the answer's header ``x-request-id``.

    A client's own ``x-request-id`` is kept as the beginning of ours. It is not ours as it is: the ledger has one row
    per id, so a client that sends the same id twice (a retry, or on purpose) would otherwise go unrecorded.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = header_of(scope, b"x-request-id")
        request_id = f"{given}-{secrets.token_hex(6)}" if given and CLIENT_ID.fullmatch(given) else new_id("req")
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                ours = {b"x-request-id": request_id}
                if journey := scope["state"].get("journey"):
                    ours |= headers_of(journey)
                message["headers"] = [pair for pair in message["headers"] if pair[0] not in ours]
                message["headers"] += [(name, value.encode("latin-1")) for name, value in ours.items()]
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception:
            log.exception("request %s: %s %s failed", request_id, scope["method"], scope["path"])
            if started:
                raise  # The server cuts the connection, so that half an answer can't pass for a whole one.
            error = WootzError(f"the server failed; its log tells more under {request_id}")
            await error_response(error, Request(scope))(scope, receive, send_with_id)


class BodyLimit:
    """Refuses a body of more than ``max_bytes`` with 413, by its declared length or, without one, as it arrives.
    ``larger`` are paths with a limit of their own."""

    def __init__(self, app: ASGIApp, max_bytes: int, larger: Mapping[str, int]) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.larger = larger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        max_bytes = self.larger.get(scope["path"], self.max_bytes)
        declared = header_of(scope, b"content-length") or ""
        is_declared = declared.isdecimal()
        too_large = is_declared and int(declared[:20]) > max_bytes
        if is_declared and not too_large and header_of(scope, b"transfer-encoding") is None:
            return await self.app(scope, receive, send)  # The server reads no more of it than was declared.
        num_bytes = 0

        async def receive_within_limit() -> Message:
            nonlocal num_bytes
            if too_large:
                raise HTTPException(413)
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > max_bytes:
                raise HTTPException(413)
            return message

        await self.app(scope, receive_within_limit, send)


def header_of(scope: Scope, name: bytes) -> str | None:
    """The first of that name, which is in lower case. The framework's ``request.headers`` takes ten times as long."""
    for one, value in scope["headers"]:
        if one == name:
            return value.decode("latin-1")
    return None
