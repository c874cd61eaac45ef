"""A request's way as bars one under the other: its stages and attempts, each where it was in time."""

from __future__ import annotations

from dataclasses import dataclass

from wootz.telemetry import AttemptRecord, RequestRecord
from wootz.telemetry.explain import enumerate_attempts

WIDTH = 1000.0


@dataclass(frozen=True)
class Piece:
    kind: str
    """The stylesheet's class: stage, wait, generate or failed."""
    x: float
    width: float


@dataclass(frozen=True)
class Track:
    name: str
    detail: str
    seconds: float
    pieces: tuple[Piece, ...]


def tracks(record: RequestRecord) -> list[Track]:
    """In the order in which they began. An attempt is drawn as waiting until its first token, then as generating."""
    whole = max(record.duration, *(one.end or one.start for _, one in enumerate_attempts(record)), 1e-6, 0.0)

    def piece(kind: str, start: float, end: float) -> Piece:
        x = WIDTH * min(max(start / whole, 0.0), 1.0)
        return Piece(kind, round(x, 2), round(max(WIDTH * min(end / whole, 1.0) - x, 2.0), 2))

    found = []
    for number, event in enumerate_attempts(record):
        end = record.duration if event.end is None else event.end
        if isinstance(event, AttemptRecord):
            first = event.first_token
            if event.error_code is not None:
                pieces = (piece("failed", event.start, end),)
            elif first is None:
                pieces = (piece("wait", event.start, end),)
            else:
                pieces = (piece("wait", event.start, first), piece("generate", first, end))
            detail = event.error_code or f"{event.provider}"
            found.append(Track(f"{number}. {event.deployment}", detail, end - event.start, pieces))
        else:
            told = ", ".join(f"{name} {value}" for name, value in event.attributes.items())
            found.append(Track(event.name, told, end - event.start, (piece("stage", event.start, end),)))
    return found
