"""What every section of the config is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base of every part of the tree: an unknown key is an error, so a typo can't be silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
