"""A file's content as an answer, whole or the range that was asked for (RFC 9110, 14). Of several ranges in one request
the whole is given, as the standard permits."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import AsyncIterator, Mapping
from typing import BinaryIO
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

AT_ONCE = 256 * 1024
RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))", re.ASCII)


def content_response(
    request: Request, content: BinaryIO, *, etag: str, filename: str, media_type: str, headers: Mapping[str, str]
) -> Response:
    """It closes ``content``, which never changes under its ``etag``."""
    size = content.seek(0, io.SEEK_END)
    said = {**headers, "accept-ranges": "bytes", "etag": f'"{etag}"'}
    name = quote(filename)
    said["content-disposition"] = "attachment; " + (
        f'filename="{name}"' if name == filename else f"filename*=utf-8''{name}"
    )
    span = _asked(request, size, said["etag"])
    if span is None:
        start, end, status = 0, size, 200
    elif span[0] >= span[1]:
        content.close()
        return Response(status_code=416, headers={"content-range": f"bytes */{size}"})
    else:
        start, end, status = *span, 206
        said["content-range"] = f"bytes {start}-{end - 1}/{size}"
    said["content-length"] = str(end - start)
    return StreamingResponse(_read(content, start, end), status, said, media_type)


def _asked(request: Request, size: int, etag: str) -> tuple[int, int] | None:
    """From and to; None for the whole; to is not after from where there is nothing to give."""
    found = RANGE.fullmatch(request.headers.get("range", "").strip())
    if found is None or request.headers.get("if-range", etag) != etag:
        return None
    first, last, suffix = found.groups()
    if suffix is not None:
        return max(size - int(suffix), 0), size
    if last and int(last) < int(first):
        return None  # Not a range at all, so it is not heeded.
    return int(first), min(int(last) + 1, size) if last else size


async def _read(content: BinaryIO, start: int, end: int) -> AsyncIterator[bytes]:
    with content:
        content.seek(start)
        while start < end:
            part = await asyncio.to_thread(content.read, min(AT_ONCE, end - start))
            if not part:
                raise EOFError("a file has become shorter while it was read")
            start += len(part)
            yield part
