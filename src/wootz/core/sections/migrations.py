"""``[migrations]``: how carefully one model takes another's place. `wootz migrate start` makes its plan of these."""

from __future__ import annotations

import re
from typing import Any, Literal, get_args

from pydantic import Field, field_validator

from wootz.core.sections.section import Section

Stage = Literal["shadow", "canary", "ramp-5", "ramp-25", "ramp-50", "full", "warm"]
"""The stages that last a while, in their order."""

DURATIONS: dict[Stage, str] = {
    "shadow": "3d", "canary": "3d", "ramp-5": "2d", "ramp-25": "2d", "ramp-50": "3d", "full": "3d", "warm": "30d",
}  # fmt: skip


def seconds_of(period: str) -> int:
    """``90s``, ``30m``, ``12h``, ``3d`` or ``2w``. Raises ValueError."""
    match = re.fullmatch(r"(\d{1,6})([smhdw])", period.strip())
    if match is None:
        raise ValueError(f'"{period}" is no period such as 90s, 30m, 12h, 3d or 2w')
    return int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}[match[2]]


class GatesConfig(Section):
    """How much worse than the old model the new one may be. ``inf`` takes a gate away."""

    errors: float = Field(default=0.02, ge=0, description="Share of failed requests, in addition to the old one's.")
    refusals: float = Field(default=0.03, ge=0, description="Share of refused requests, likewise.")
    first_token: float = Field(default=1.25, gt=0, description="95th percentile of the wait, as a multiple.")
    duration: float = Field(default=1.25, gt=0, description="95th percentile of the whole answer, as a multiple.")
    cost: float = Field(default=1.10, gt=0, description="Mean cost of a request, as a multiple.")
    satisfaction: float = Field(default=0.05, ge=0, description="Mean rating (0 to 1) that may be lost.")


class MigrationsConfig(Section):
    durations: dict[Stage, str] = Field(
        default_factory=lambda: dict(DURATIONS), description="Least time of each stage."
    )
    gates: GatesConfig = Field(default_factory=GatesConfig)
    min_samples: int = Field(default=200, ge=1, description="Requests of each model without which no stage is passed.")
    min_ratings: int = Field(
        default=0, ge=0, description="Ratings of each model without which no stage behind the shadow is passed."
    )
    shadow_share: float = Field(default=0.1, ge=0, le=1, description="Part of the requests that are copied.")
    shadow_concurrency: int = Field(
        default=4, ge=1, description="Copies under way in one process; what comes while it is reached is not copied."
    )
    check_seconds: float = Field(default=30.0, gt=0, description="Between two looks at the gates.")

    @field_validator("durations", mode="before")
    @classmethod
    def _periods(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        for stage, period in value.items():
            if stage not in get_args(Stage):
                raise ValueError(f'there is no stage "{stage}"; there are {", ".join(get_args(Stage))}')
            seconds_of(str(period))
        return DURATIONS | value
