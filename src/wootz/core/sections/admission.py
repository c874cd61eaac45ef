"""``[admission]``: how many requests a model works on at a time, and who waits how long for a place."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wootz.core.sections.section import Section

Capacity = Annotated[int, Field(ge=1)] | Literal["learnt"]


class AdmissionConfig(Section):
    capacity: dict[str, Capacity] = Field(
        default_factory=dict,
        description="Requests at a time, by the model or route that users name, of each HTTP process. "
        '"learnt": more while it copes, fewer when it says that it is too much. Not named: as many as come.',
    )
    max_waiting: int = Field(default=256, ge=0, description="Who wait for a place at a model; more get a 429.")
    max_wait_seconds: float = Field(default=30.0, gt=0, description="Who waited so long gets a 429 too.")
    batch_share: float = Field(
        default=0.5, gt=0, le=1, description="Of a model's places, what batches may take, so that others find some."
    )
    weights: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict,
        description="Shares while there are not places for all, by the name of a user, team or key. Default: 1.",
    )
