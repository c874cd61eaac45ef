"""``[routes.NAME]``: a name of its own for several models, and how one of them is picked for each request."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from decimal import Decimal
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from wootz.core.sections.section import Section

Script = Literal["latin", "han", "kana", "hangul", "cyrillic", "arabic", "hebrew", "greek", "devanagari", "thai"]


class TargetConfig(Section):
    """One model of a route; a text instead of a table is its name."""

    model: str
    weight: int = Field(default=1, ge=0, description='Its share under the policies "weights" and "ab".')
    region: str | None = Field(default=None, description="Where it is computed. Default: its provider's.")
    tags: list[str] = Field(default_factory=list, description="Words that rules may mean it by.")
    capacity: int | None = Field(
        default=None, ge=1, description='Under the policy "overflow": with so many requests under way it is full.'
    )


class RuleConfig(Section):
    """Where all that is given here holds for a request, it goes ``to`` these. The first rule that holds decides."""

    to: list[str] = Field(min_length=1, description="Models of the route, or tags of them; in this order.")
    min_chars: int | None = Field(default=None, ge=0, description="Of all texts in the request together.")
    max_chars: int | None = Field(default=None, ge=0)
    tools: bool | None = Field(default=None, description="Whether it offers tools.")
    images: bool | None = Field(default=None, description="Whether it has parts that are not text.")
    structured: bool | None = Field(default=None, description="Whether it wants JSON or another structure.")
    script: Script | None = Field(default=None, description="What most letters of the last message belong to.")
    contains: list[str] = Field(default_factory=list, description="Any of these words in the last message.")
    tags: dict[str, str] = Field(default_factory=dict, description="All of these among the request's tags.")


class VerifierConfig(Section):
    """What an answer must look like: a check that costs nothing."""

    pattern: str | None = Field(default=None, description="A regular expression that is found in the answer.")
    min: Decimal | None = Field(default=None, description="The last number in the answer is at least this,")
    max: Decimal | None = Field(default=None, description="and at most this.")
    json_object: bool = Field(default=False, description="The answer is a JSON object.")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from None
        return value


class CascadeConfig(Section):
    """Under the policy "cascade": how an answer's confidence is known, and how much of it is enough."""

    signal: Literal["self-rating", "logprob", "agreement", "verifier"] = "self-rating"
    thresholds: list[float] = Field(
        min_length=1, description="One for each target but the last; `wootz cascade fit` computes them."
    )
    samples: int = Field(default=3, ge=2, le=9, description='Answers that are compared under "agreement".')
    verify: VerifierConfig | None = Field(default=None, description='The check of the signal "verifier".')

    @model_validator(mode="after")
    def _has_its_check(self) -> CascadeConfig:
        if (self.signal == "verifier") != (self.verify is not None):
            raise ValueError('"verify" goes with the signal "verifier", and only with it')
        return self


class RouteConfig(Section):
    targets: list[TargetConfig] = Field(min_length=1)
    policy: Literal[
        "order", "weights", "least-latency", "least-busy", "cheapest", "ab", "overflow", "learned", "cascade"
    ] = Field(default="order", description='Which target comes first; "order" is the order they are listed in.')
    regions: list[str] = Field(
        default_factory=list, description="Regions by preference: targets in the first go before all others."
    )
    rules: list[RuleConfig] = Field(default_factory=list)
    fallbacks: list[str] = Field(default_factory=list, description="Models asked when every target failed.")
    retries: int = Field(default=1, ge=0, le=5, description="How often all of them are tried again, after a wait.")
    max_wait_seconds: float = Field(
        default=10.0, ge=0, description="Longest wait before trying again; who asks for more patience gets a 429."
    )
    first_token_seconds: float = Field(default=120.0, gt=0, description="For each attempt, until there is content.")
    total_seconds: float | None = Field(default=None, gt=0, description="For the whole answer, attempts and all.")
    hedge: bool = Field(
        default=False, description="Ask a second one when the first takes longer than 95 in 100 of its answers did."
    )
    router: Path | None = Field(default=None, description='The policy "learned": a file of `wootz router train`.')
    router_threshold: float = Field(default=0.5, ge=0, le=1, description="From this score on the dear target is asked.")
    cascade: CascadeConfig | None = None

    @field_validator("targets", mode="before")
    @classmethod
    def _names_are_targets(cls, value: Any) -> Any:
        if isinstance(value, list):
            return [{"model": item} if isinstance(item, str) else item for item in value]
        return value

    @model_validator(mode="after")
    def _fits_its_policy(self) -> RouteConfig:
        names = [target.model for target in self.targets] + self.fallbacks
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f'"{twice}" is named twice')
        known = {target.model for target in self.targets} | {tag for target in self.targets for tag in target.tags}
        for rule in self.rules:
            if unknown := next((name for name in rule.to if name not in known), None):
                raise ValueError(f'a rule leads to "{unknown}", which is neither a target nor a tag of one')
        if (self.policy == "learned") != (self.router is not None):
            raise ValueError('"router" goes with the policy "learned", and only with it')
        if self.policy == "learned" and len(self.targets) != 2:
            raise ValueError('the policy "learned" chooses between two targets, the cheap one first')
        if (self.policy == "cascade") != (self.cascade is not None):
            raise ValueError('"cascade" goes with the policy "cascade", and only with it')
        if self.cascade is not None and len(self.cascade.thresholds) != len(self.targets) - 1:
            raise ValueError("a cascade has a threshold for each target but the last")
        if self.policy in ("weights", "ab") and not any(target.weight for target in self.targets):
            raise ValueError("all weights are 0")
        return self

    @property
    def members(self) -> list[str]:
        return [target.model for target in self.targets] + self.fallbacks


def in_order(routes: Mapping[str, RouteConfig], models: Collection[str]) -> list[str]:
    """The routes' names, those that others are made of first. Raises ValueError for an unknown member or a circle."""
    for name, route in routes.items():
        if unknown := next((member for member in route.members if member not in routes and member not in models), None):
            raise ValueError(f'route "{name}" names "{unknown}", which is no model')
    members = {name: [member for member in route.members if member in routes] for name, route in routes.items()}
    try:
        return list(TopologicalSorter(members).static_order())
    except CycleError as error:
        raise ValueError(f"routes lead in a circle: {' → '.join(reversed(error.args[1]))}") from None
