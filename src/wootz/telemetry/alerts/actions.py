"""What is done about an incident without waiting for a person, if the config says so; else only what would be done.

Whoever can do something (the gateway's limits, its routes, the migration controller) is handed in as an `Actor`. An
actor first plans, which changes nothing and is all that a dry run does. Doing it twice must be as doing it once: a
process that dies between the deed and its note leaves it to the next one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from wootz.telemetry.alerts.incidents import IncidentRow


@dataclass(frozen=True)
class Plan:
    """``what`` is a sentence. Without ``steps`` there is nothing that can be done, and ``what`` says why."""

    what: str
    steps: Mapping[str, Any] = field(default_factory=dict)
    """JSON, kept with the incident: enough to do it, and to undo it later."""


class Actor(Protocol):
    async def plan(self, incident: IncidentRow) -> Plan:
        """What to do now. ``incident.detail["culprit"]`` says who has most of it, where that is known."""
        ...

    async def do(self, steps: Mapping[str, Any]) -> None: ...

    async def undo(self, steps: Mapping[str, Any]) -> None:
        """The incident is over. What somebody changed by hand meanwhile stays as they want it."""
        ...
