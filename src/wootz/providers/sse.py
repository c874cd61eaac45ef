"""Read a server-sent event stream: bytes in any pieces in, each event's ``data`` out.

Written for streams as they are found: lines end in LF, CRLF or CR, and pieces cut anywhere, also inside a
character; comments keep a connection alive; one event may have several ``data`` lines.
Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from __future__ import annotations

MAX_LINE_BYTES = 16 * 2**20
"""A line longer than this is no event; without a limit a broken server could fill our memory."""


class EventReader:
    """Bytes in by `feed`, in whatever pieces they arrive; the data of each event that they complete out, its lines
    joined by a newline. Both raise `ValueError` on what is not UTF-8 or too long.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []

    def feed(self, piece: bytes) -> list[str]:
        is_plain = b"\n" in piece and not (self._data or b"\r" in piece or b"\r" in self._rest)
        events = self._plain(piece) if is_plain else None
        return self._lines(piece) if events is None else events

    def _plain(self, piece: bytes) -> list[str] | None:
        """Of a stream that is written as nearly all are: a line of data and an empty one. None: it is not."""
        complete, end, rest = (self._rest + piece).rpartition(b"\n\n")
        if len(rest) > MAX_LINE_BYTES or not end:
            return None
        text = complete.decode()
        events = text[6:].split("\n\ndata: ")
        if not text.startswith("data: ") or text.count("\n") != 2 * (len(events) - 1):
            return None
        self._rest = rest
        return events

    def _lines(self, piece: bytes) -> list[str]:
        *complete, rest = (self._rest + piece).splitlines(keepends=True) or [b""]
        if rest.endswith(b"\n"):  # A final CR waits: the LF that belongs to it may come with the next piece.
            complete.append(rest)
            rest = b""
        if len(rest) > MAX_LINE_BYTES:
            raise ValueError(f"a line of more than {MAX_LINE_BYTES} bytes")
        self._rest = rest
        events = []
        for ended in complete:
            if line := ended.rstrip(b"\r\n"):
                field, _, value = line.partition(b":")
                if field == b"data":
                    self._data.append(value.removeprefix(b" ").decode())
            elif self._data:
                events.append("\n".join(self._data))
                self._data = []
        return events

    def end(self) -> list[str]:
        """What the stream's end cuts off is dropped, as the standard says, unless its last line is complete."""
        whole = self.feed(b"\n") if self._rest.endswith(b"\r") else []
        if self._data:
            whole.append("\n".join(self._data))
            self._data = []
        return whole
