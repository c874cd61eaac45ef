"""What a key, a team, a user or a tag may use up, as an administrator writes it. None everywhere means: no limit."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from wootz.core import BadRequestError

Count = Annotated[int, Field(ge=1, lt=2**31)]
BudgetPeriod = Literal["daily", "weekly", "monthly", "never"]
SubjectKind = Literal["key", "team", "user", "tag", "conversation"]

LARGEST_BUDGET = Decimal(4_000_000)
"""USD. Two of these still fit into 64 bits of picodollars."""


class Limits(BaseModel):
    """The fields of a key's, team's, user's or tag's limits, in HTTP bodies, provisioning files and the database."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    tokens_per_day: Annotated[int, Field(ge=1, lt=2**53)] | None = None
    concurrent_requests: Count | None = None
    budget_usd: Decimal | None = Field(default=None, ge=0, lt=LARGEST_BUDGET, description="Needs a budget_period.")
    budget_period: BudgetPeriod | None = Field(
        default=None, description="When the budget is full again: weeks begin on Monday, months on the 1st."
    )
    conversation_steps: Count | None = Field(default=None, description="Requests of one conversation a day.")
    conversation_usd: Decimal | None = Field(
        default=None, ge=0, lt=LARGEST_BUDGET, description="What one conversation may cost a day."
    )
    reset_hour: int = Field(default=0, ge=0, le=23, description="When a day begins, in time_zone.")
    time_zone: str = Field(default="UTC", max_length=64, description="An IANA name, for example Asia/Shanghai.")

    @field_validator("budget_usd", "conversation_usd", mode="before")
    @classmethod
    def _exact(cls, value: Any) -> Any:
        """Through text, so that 0.1 is a tenth."""
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            return value
        try:
            return Decimal(str(value))
        except InvalidOperation:
            raise ValueError("a budget is a decimal number") from None

    @field_validator("budget_usd", "conversation_usd")
    @classmethod
    def _whole_picodollars(cls, value: Decimal | None) -> Decimal | None:
        if value is not None and int(value.as_tuple().exponent) < -12:
            raise ValueError("a budget has at most 12 decimals")
        return value

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            return ZoneInfo(value).key
        except (KeyError, ValueError, OSError):
            raise ValueError(f'there is no time zone "{value}"') from None

    @model_validator(mode="after")
    def _budget_has_a_period(self) -> Limits:
        if (self.budget_usd is None) != (self.budget_period is None):
            raise ValueError('"budget_usd" and "budget_period" belong together')
        return self

    @classmethod
    def parse(cls, fields: dict[str, Any]) -> Limits:
        """Raises `BadRequestError` that names the field."""
        try:
            return cls(**fields)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            param = str(first["loc"][0]) if first["loc"] else "budget_usd"
            message = first["msg"].removeprefix("Value error, ")
            raise BadRequestError(f'"{param}": {message[:1].lower()}{message[1:]}', param=param) from None

    @property
    def plain(self) -> dict[str, Any]:
        """What is set, as JSON types; the inverse of `parse`."""
        return self.model_dump(mode="json", exclude_defaults=True, include=set(Limits.model_fields))

    @property
    def any(self) -> bool:
        limits = (self.requests_per_minute, self.tokens_per_minute, self.tokens_per_day, self.concurrent_requests)
        return any(limits) or self.budget_usd is not None or self.of_conversations

    @property
    def counts_tokens(self) -> bool:
        """Whether any of them depends on how long a request and its answer are."""
        return self.tokens_per_minute is not None or self.tokens_per_day is not None or self.counts_money

    @property
    def counts_money(self) -> bool:
        return self.budget_usd is not None or self.conversation_usd is not None

    @property
    def of_conversations(self) -> bool:
        return self.conversation_steps is not None or self.conversation_usd is not None


NO_LIMITS = Limits()


@dataclass(frozen=True)
class Subject:
    """Whom limits are for. A request has several: its key, and that key's team, user and tags."""

    kind: SubjectKind
    id: str
    """Of a tag: ``name=value``; of a conversation: as the client names it."""
    name: str
    limits: Limits
    within: Subject | None = None
    """Of a conversation: whose limits it has."""

    def __str__(self) -> str:
        return f'{self.kind} "{self.name}"'
