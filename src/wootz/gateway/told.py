"""What an answer's headers tell of its request's way."""

from __future__ import annotations

from wootz.core.journey import Journey


def headers_of(journey: Journey) -> list[tuple[bytes, bytes]]:
    """For ASGI; known when the answer's first chunk is."""
    return [(name.encode(), value.encode()) for name, value in journey.answer_headers.items()]
