"""One caller's connection to an engine process, from the engine's side."""

from __future__ import annotations

import asyncio
import logging

from wootz.core import WootzError
from wootz.engine import protocol
from wootz.engine.protocol import Failed, FromEngine

MAX_UNREAD_BYTES = 32 * 2**20

log = logging.getLogger("wootz.engine")


class Connection:
    """A reader that leaves `MAX_UNREAD_BYTES` lying about is dropped, so it neither holds up the engine nor fills its
    memory."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer

    def send(self, *messages: FromEngine) -> None:
        if self.writer.is_closing():
            return
        self.writer.write(b"".join(map(protocol.frame, messages)))
        if self.writer.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            log.warning("a caller does not read its answers; its connection is closed")
            self.writer.transport.abort()


def failed(request_id: str, error: WootzError) -> Failed:
    return Failed(request_id, status=error.status, message=str(error), code=error.code, param=error.param)
