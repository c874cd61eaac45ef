"""Every test prints as wide as it says: a console remembers how wide the first one was. None leaves a store open."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from wootz.cli.common import stderr, stdout
from wootz.core.secrets import use_stores


@pytest.fixture(autouse=True)
def new_consoles() -> Iterator[None]:
    stdout.cache_clear()
    stderr.cache_clear()
    yield
    stdout.cache_clear()
    stderr.cache_clear()
    use_stores(None)
