"""An alert's rule, as it stands in a TOML file: what is measured, against what, and what is to be done about it.

``rules.toml`` beside this file has the ones that ship. A file of one's own (``[alerts] file``) changes them by their
names, field by field, and adds others; so what an operator reads at night is data, and the same for everybody.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from wootz.core import BadRequestError
from wootz.telemetry.report import parse_period

Severity = Literal["info", "warning", "critical"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "critical")


def _period(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return timedelta(seconds=int(value[:-1])) if value.endswith("s") else parse_period(value)
        except (BadRequestError, ValueError):
            raise ValueError(f'"{value}" is no period; write for example 30s, 5m, 1h or 7d') from None
    return value


Period = Annotated[timedelta, BeforeValidator(_period), Field(ge=timedelta(0))]
"""``30s``, ``5m``, ``1h``, ``7d``, ``2w``."""


class Rule(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,59}$")
    about: str = Field(description="What is wrong when it fires, in a sentence.")
    severity: Severity
    measure: str = Field(description="A name of `measures.MEASURES`, or `signal:KIND`.")
    by: str = Field(default="all", description="One incident for each: model, deployment, user, feature, tag:NAME, …")
    window: Period
    quantile: float | None = Field(default=None, gt=0, lt=1, description="For measures that are columns.")

    compare: Literal["level", "before", "ago", "peers", "older"] = Field(
        default="level",
        description="What is compared with the thresholds: the value itself, or its ratio to the stretch of `baseline` "
        "before the window, to the same window `baseline` ago, to the median of the others, or to the older model.",
    )
    baseline: Period = timedelta(0)
    history: Period = Field(default=timedelta(0), description="Records must go back this far, or it is not judged.")
    direction: Literal["up", "down"] = "up"
    fires: float = Field(description="At or beyond this value or ratio.")
    clears: float = Field(description="Once it fired, it is over only beyond this one, on the other side.")
    floor: float = Field(default=0, description="Never fires for values below this, whatever the ratio.")
    least: int = Field(default=1, ge=1, description="Samples in the window, fewer are not judged.")
    cases: int = Field(
        default=0, ge=0, description="Of a share: fires only at so many cases. Two of ten are no outage."
    )
    z: float = Field(default=0, ge=0, description="The change must be this many standard errors from chance.")
    hold: Period = Field(default=timedelta(0), description="It must last this long before it fires.")
    quiet: Period = Field(default=timedelta(minutes=5), description="It must be over this long to be resolved.")
    every: Period = Field(default=timedelta(seconds=30), description="How often it is looked at.")

    runbook: str = Field(description="A page of docs/operations.")
    action: str | None = Field(default=None, description="limit_caller, fail_over or roll_back.")
    promql: str | None = Field(default=None, description="For Prometheus, where our metrics say enough.")
    enabled: bool = True

    @model_validator(mode="after")
    def _makes_sense(self) -> Rule:
        if (self.fires < self.clears) if self.direction == "up" else (self.fires > self.clears):
            raise ValueError(f"{self.name}: with these thresholds it would be over before it began")
        if self.compare in ("before", "ago") and not self.baseline:
            raise ValueError(f'{self.name}: compare = "{self.compare}" needs a baseline')
        if self.quantile and self.compare != "level":
            raise ValueError(f"{self.name}: a quantile is compared as it is")
        return self

    def is_firing(self, judged: float) -> bool:
        return judged >= self.fires if self.direction == "up" else judged <= self.fires

    def is_clear(self, judged: float) -> bool:
        return judged < self.clears if self.direction == "up" else judged > self.clears
