"""Attributes: which models a key may use, and whose requests a person may see. Roles say what may be done at all.

Teams, users and keys carry attributes; each narrows what those around it allow:

- ``regions``: where what they send may be computed. A key may be served only where all that it belongs to may.
- ``data_class``: up to which class they handle data, by the order of ``identity.data_classes``. The lowest holds.

Models carry attributes too: their ``region``, the ``data_class`` that they are approved for, the ``teams`` they are
for. Whatever is not said counts against: with data classes configured, a key without one may hold anything and goes
only to a model approved for the highest; a model without one is approved for the lowest only; a key bound to regions
never goes to a model that is nowhere.

Source: NIST SP 800-162, attribute-based access control.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from wootz.core import Config
from wootz.core.sections import ModelConfig


class Attributes(BaseModel):
    """As the columns of keys and accounts keep them. None says nothing, and so leaves it to the others."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    regions: list[str] | None = Field(default=None, min_length=1, description="Only there may requests be computed.")
    data_class: str | None = Field(default=None, min_length=1, description="Of the data that is handled, at most.")

    @classmethod
    def parse(cls, fields: dict[str, Any] | None) -> Attributes:
        return cls.model_validate(fields or {})

    @property
    def plain(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True)


NO_ATTRIBUTES = Attributes()


@dataclass(frozen=True)
class Standing:
    """All attributes of a key together: its own, its user's, its team's."""

    regions: frozenset[str] | None
    """None: anywhere. Empty: they contradict each other, so nowhere."""
    data_classes: tuple[str, ...]
    """Those that were given; the lowest of them holds."""

    @classmethod
    def of(cls, all_of: Sequence[Attributes]) -> Standing:
        bounds = [frozenset(one.regions) for one in all_of if one.regions is not None]
        regions = frozenset.intersection(*bounds) if bounds else None
        return cls(regions, tuple(one.data_class for one in all_of if one.data_class is not None))

    def rank(self, classes: Sequence[str]) -> int:
        """Of the class of data that is handled; the highest where none was given, or one nobody knows."""
        ranks = [classes.index(one) for one in self.data_classes if one in classes]
        return min(ranks) if ranks and len(ranks) == len(self.data_classes) else len(classes) - 1

    def clearance(self, classes: Sequence[str]) -> int:
        """Up to which class somebody may read what others sent; the lowest where none was given."""
        ranks = [classes.index(one) if one in classes else 0 for one in self.data_classes]
        return min(ranks, default=0)


def may_use(config: Config, name: str, standing: Standing, team: Collection[str]) -> bool:
    """Whether a model takes such data from such a team, by its config; of a route, whether any of its models does.

    ``team`` is the team's name and id. Regions are another matter: they hold for every single call (`residency`), as
    does what is `barred`.
    """
    if (route := config.routes.get(name)) is not None:
        return any(may_use(config, member, standing, team) for member in route.members)
    model = model_config(config, name)
    if model is None:
        return not config.identity.data_classes
    if model.teams and not set(model.teams) & set(team):
        return False
    return not (classes := config.identity.data_classes) or standing.rank(classes) <= approved_for(model, classes)


def barred(config: Config, standing: Standing, team: Collection[str]) -> frozenset[str]:
    """The models that `may_use` refuses, adapters included: for every single call, as a route may have some of both."""
    names = (name for model, one in config.models.items() for name in (model, *one.adapters))
    return frozenset(name for name in names if not may_use(config, name, standing, team))


def approved_for(model: ModelConfig, classes: Sequence[str]) -> int:
    return classes.index(model.data_class) if model.data_class in classes else 0


def model_config(config: Config, name: str) -> ModelConfig | None:
    """Of a model, or of the one that an adapter is on."""
    on = (model for model in config.models.values() if name in model.adapters)
    return config.models.get(name) or next(on, None)
