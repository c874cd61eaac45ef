"""The parts of a message that are not text, read for providers that don't speak OpenAI's protocol.

An image's address goes on to the provider as it is, and is fetched there: if we fetched it, a tenant could point us at
our own network.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from mimetypes import guess_type
from typing import Any, Literal

from wootz.core import BadRequestError, UnsupportedError
from wootz.core.wire import ChatMessage, ContentPart

_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)(?:;[\w=.+-]+)*;base64,(.*)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Media:
    """Its bytes in base64, or where they are."""

    kind: Literal["image", "audio", "video", "file"]
    mime_type: str | None
    data: str | None = None
    url: str | None = None
    name: str | None = None


def parts_of(message: ChatMessage) -> list[ContentPart]:
    if isinstance(message.content, list):
        return message.content
    return [ContentPart(type="text", text=message.content)] if message.content else []


def media(part: ContentPart, where: str, *, model: str) -> Media:
    """Raises `BadRequestError` for what is not well formed, `UnsupportedError` for a kind of part nobody knows."""
    extra: Mapping[str, Any] = part.model_extra or {}
    match part.type:
        case "image_url" | "video_url":
            field = extra.get(part.type)
            url = field.get("url") if isinstance(field, dict) else field
            kind = "image" if part.type == "image_url" else "video"
            return _from_url(url, kind, f"{where}.{part.type}")
        case "input_audio":
            audio = extra.get("input_audio")
            if not (isinstance(audio, dict) and isinstance(audio.get("data"), str)):
                raise BadRequestError(f'"{where}.input_audio" needs "data" in base64', param=f"{where}.input_audio")
            return Media(kind="audio", mime_type=f"audio/{audio.get('format', 'wav')}", data=audio["data"])
        case "file":
            file = extra.get("file")
            if not (isinstance(file, dict) and isinstance(file.get("file_data"), str)):
                raise UnsupportedError(f'model "{model}" takes a file as "file_data" only', param=f"{where}.file")
            found = _from_url(file["file_data"], "file", f"{where}.file.file_data")
            return Media(
                kind="file", mime_type=found.mime_type, data=found.data, url=found.url, name=file.get("filename")
            )
    raise UnsupportedError(f'model "{model}" takes no part of type "{part.type[:40]}"', param=f"{where}.type")


def _from_url(url: Any, kind: Literal["image", "video", "file"], where: str) -> Media:
    if isinstance(url, str):
        if found := _DATA_URL.fullmatch(url):
            return Media(kind=kind, mime_type=found[1], data=found[2])
        if url.startswith(("http://", "https://")):
            return Media(kind=kind, mime_type=guess_type(url.partition("?")[0])[0], url=url)
    raise BadRequestError(f'"{where}" must be a data: URL in base64, or an http:// or https:// address', param=where)


def refuse_rest(fields: Mapping[str, Any], known: Container[str], *, model: str) -> None:
    """Raises `UnsupportedError` for a field that this provider has no word for: it is never dropped in silence."""
    for name in fields:
        if name not in known:
            raise UnsupportedError(f'the provider of model "{model}" has no "{name[:80]}"', param=name[:80])
