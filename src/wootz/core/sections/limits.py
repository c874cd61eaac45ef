"""``[limits]``: where what keys, teams, users and tags use up is counted, and what holds while that place is gone."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from wootz.core.sections.section import Section

WithoutRedis = Literal["closed", "open"]


class LimitsConfig(Section):
    redis: str | None = Field(
        default=None,
        description="redis://… or a reference to one (env:NAME, file:PATH), where all HTTP processes count together. "
        "Default: each counts for itself.",
    )
    budgets_without_redis: WithoutRedis = Field(
        default="closed",
        description="While Redis is gone: refuse what has a budget or tokens a day (503), or let it.",
    )
    rates_without_redis: WithoutRedis = Field(
        default="open", description="The same for requests and tokens a minute and for concurrent requests."
    )
    assumed_completion_tokens: int = Field(
        default=4096, ge=1, description="Held for the answer to a request that sets no max_tokens."
    )
