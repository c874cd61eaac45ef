"""Fill what is one's own first: targets in the order they are listed, those that are full after the others.

Full is who has its ``capacity`` of requests under way. Who answered 429 is left alone by the route itself."""

from __future__ import annotations

from collections.abc import Sequence

from wootz.core.tool_wire import ModelRequest
from wootz.gateway.routing.candidate import Candidate


def overflow(candidates: Sequence[Candidate], _request: ModelRequest) -> list[Candidate]:
    return sorted(candidates, key=lambda one: one.capacity is not None and one.in_flight >= one.capacity)
