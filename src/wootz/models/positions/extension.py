"""Stretching a model to longer texts: what changes in its ``config.json``, and what guards against doing it twice.

No weight changes, so a stretched model is its old weights under the new config. What was done stands under
``context_extension`` (method, factor, the length it was trained on, and the one it was measured to work to); loading
rebuilds the angles from ``rope_parameters``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from wootz.core.errors import ConfigError
from wootz.models.families.family import rope_parameters

Method = Literal["linear", "ntk", "dynamic", "yarn", "longrope"]
RECORD = "context_extension"


@dataclass(frozen=True)
class ContextExtension:
    method: Method
    factor: float
    original_length: int
    working_length: int | None = None
    """The longest text at which the model was measured to work; None while nobody has."""


def extend(
    raw: Mapping[str, Any],
    method: Method,
    factor: float,
    *,
    long_factors: Sequence[float] | None = None,
    unscaled_tokens: int = 0,
    working_length: int | None = None,
) -> dict[str, Any]:
    """A model's config, stretched. ``long_factors``, one for each rotary pair, and ``unscaled_tokens`` are LongRoPE's,
    found by `longrope_search.search`; texts within the trained length keep their angles. (Transformers reads the
    factors, and knows no unscaled tokens.)

    Raises `ConfigError` for a model that is stretched already, or has no rotary positions.
    """
    if "rope_theta" not in raw and "rope_parameters" not in raw and raw.get("positions", "rope") != "rope":
        raise ConfigError("only rotary positions can be stretched, and this model has others")
    rope = rope_parameters(raw)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default" or RECORD in raw:
        raise ConfigError(
            f'this model is stretched already (by "{raw.get(RECORD, {}).get("method", kind)}")',
            hint="stretch the original: a second factor would multiply the first",
        )
    if not factor > 1:
        raise ConfigError(f"a factor of {factor} does not stretch anything")
    original = raw["max_position_embeddings"]
    rope = {"rope_type": method, "rope_theta": rope["rope_theta"], "factor": factor}
    if method != "dynamic":
        rope["original_max_position_embeddings"] = original
    if method == "longrope":
        if long_factors is None:
            raise ConfigError("longrope needs a factor for each rotary pair", hint="search for them first")
        rope |= {"short_factor": [1.0] * len(long_factors), "long_factor": list(long_factors)}
        if unscaled_tokens:
            rope["unscaled_tokens"] = unscaled_tokens
    record = ContextExtension(method, factor, original, working_length)
    without = {key: value for key, value in raw.items() if key not in ("rope_scaling", "rope_theta")}
    longest = original if method == "dynamic" else int(original * factor)  # dynamic is counted from the trained length
    return without | {"rope_parameters": rope, "max_position_embeddings": longest, RECORD: asdict(record)}


def extension_of(raw: Mapping[str, Any]) -> ContextExtension | None:
    """What was done to this model, as far as its config says."""
    return ContextExtension(**raw[RECORD]) if RECORD in raw else None


def with_working_context(raw: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    """A model's config with what was measured of it (``working_length`` and how that was found, as
    `wootz.evals.long_context.WorkingContext.as_metadata` has it) under ``working_context``; and in the record of its
    extension, if it was extended."""
    new = {**raw, "working_context": dict(measured)}
    if RECORD in raw:
        new[RECORD] = {**raw[RECORD], "working_length": measured["working_length"]}
    return new
