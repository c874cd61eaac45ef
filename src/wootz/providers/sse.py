"""Read a server-sent event stream: bytes in any pieces in, each event's ``data`` out.

Written for streams as they are found: lines end in LF, CRLF or CR, and pieces cut anywhere, also inside a
character; comments keep a connection alive; one event may have several ``data`` lines.
Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable

MAX_LINE_BYTES = 16 * 2**20
"""A line longer than this is no event; without a limit a broken server could fill our memory."""


async def event_data(pieces: AsyncIterable[bytes]) -> AsyncGenerator[str, None]:
    """The data of each event, its lines joined by a newline. Raises `ValueError` on what is not UTF-8 or too long.

    An event that the stream's end cuts off is dropped, as the standard says, unless its last line is complete.
    """
    data: list[str] = []
    async for line in _lines(pieces):
        if line:
            field, _, value = line.partition(b":")
            if field == b"data":
                data.append(value.removeprefix(b" ").decode())
        elif data:
            yield "\n".join(data)
            data = []
    if data:
        yield "\n".join(data)


async def _lines(pieces: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    rest = b""
    async for piece in pieces:
        *complete, rest = (rest + piece).splitlines(keepends=True) or [b""]
        if rest.endswith(b"\n"):  # A final CR waits: the LF that belongs to it may come with the next piece.
            complete.append(rest)
            rest = b""
        for line in complete:
            yield line.rstrip(b"\r\n")
        if len(rest) > MAX_LINE_BYTES:
            raise ValueError(f"a line of more than {MAX_LINE_BYTES} bytes")
    if rest.endswith(b"\r"):
        yield rest.rstrip(b"\r")
