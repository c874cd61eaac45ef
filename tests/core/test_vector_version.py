"""Vectors of two models are never compared."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wootz.core import ConfigError
from wootz.core.vector_version import VectorVersion, require_same

INDEX = VectorVersion(model="text-embedding-3-small", revision="2024-01-25", dimensions=1536)


def test_the_same_version_may_ask() -> None:
    require_same(INDEX, replace(INDEX))


@pytest.mark.parametrize(
    "changes",
    [{"model": "text-embedding-3-large"}, {"revision": "2026-02-01"}, {"dimensions": 512}, {"normalized": False},
     {"prefix": "query: "}],
)  # fmt: skip
def test_any_difference_is_refused_by_its_name(changes: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        require_same(INDEX, replace(INDEX, **changes))
