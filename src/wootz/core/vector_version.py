"""Which model made a vector, and a guard: vectors of two models lie in two spaces, and comparing them means nothing.

An index keeps the version that its vectors were made with, and every query is held against it before it is compared.
Nothing else shows the mistake: mixed vectors have the right shape, and the answers are merely bad.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from wootz.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class VectorVersion:
    """All that makes the same text another vector."""

    model: str
    """The name by which the endpoint itself knows it, not an alias that may be moved."""
    revision: str = ""
    """A commit, a date, a hash of the weights."""
    dimensions: int
    normalized: bool = True
    prefix: str = ""
    """What is put before a text, such as ``passage: ``; the query's own prefix is part of the model's use."""


def require_same(index: VectorVersion, query: VectorVersion) -> None:
    """Raises `ConfigError` that names every difference."""
    old, new = asdict(index), asdict(query)
    if differences := [f"{name} {old[name]!r}, not {new[name]!r}" for name in old if old[name] != new[name]]:
        raise ConfigError(
            f"the index was made with {'; '.join(differences)}",
            code="vector_version_mismatch",
            hint="ask with the model that made it, or make the index anew and switch when it is whole",
        )
