"""The families: each file reads one kind of ``config.json`` and knows what its checkpoints call the weights.

A file in this folder that defines ``FAMILY`` is found by itself; see ``docs/models.md`` for how to add one.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from typing import Any

from wootz.models.families.family import Family, ModelConfig, Names, View

__all__ = ["Family", "ModelConfig", "Names", "View", "families", "family_of", "read_config"]


@cache
def families() -> dict[str, Family]:
    """Every family by each ``model_type`` it reads."""
    modules = [import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    found = [module.FAMILY for module in modules if hasattr(module, "FAMILY")]
    return {model_type: family for family in found for model_type in family.model_types}


def family_of(model_type: Any) -> Family:
    """Raises ValueError, with a message for the user, for what we do not have."""
    if model_type not in families():
        known = ", ".join(sorted(families()))
        raise ValueError(f'architecture "{model_type}" is not supported ({known} are)')
    return families()[model_type]


def read_config(raw: dict[str, Any]) -> ModelConfig:
    """The config of the model that a ``config.json`` describes: ``read_config(raw).build()`` has random weights.

    Raises KeyError for what is missing and ValueError, with a message for the user, for what we cannot run.
    """
    family = family_of(raw.get("model_type"))
    for name in _SIZES & raw.keys():
        size = raw[name]
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name} must be a positive whole number, not {size!r}")
    return family.read_config(raw)


_SIZES = {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"}
