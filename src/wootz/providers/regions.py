"""In which regions DashScope offers a model, as dated data: `regions.toml`, each row with the day and the places it was
read from.

DashScope answers 404 "Model not exist" for a model that is elsewhere, as for a name that is misspelt. Where the table
says it, the request is refused before it is sent, with the regions that have the model; a route then goes on to its
next target (`gateway/routing`). A model without a row is asked for, and the endpoint's own refusal is told with the
region.
"""

from __future__ import annotations

import tomllib
from datetime import date
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files

from wootz.core import UnsupportedError
from wootz.core.sections import Section
from wootz.providers.endpoint import Endpoint


class Available(Section):
    """``names`` are patterns."""

    names: tuple[str, ...]
    regions: tuple[str, ...]
    read: date
    source: str


@cache
def table() -> tuple[Available, ...]:
    rows = tomllib.loads((files("wootz.providers") / "regions.toml").read_text())["available"]
    return tuple(Available.model_validate(row) for row in rows)


def available(upstream_model: str) -> Available | None:
    """Of DashScope's models. None: nothing is known of it."""
    return next((row for row in table() if any(fnmatchcase(upstream_model, name) for name in row.names)), None)


def check_region(endpoint: Endpoint) -> None:
    """Raises `UnsupportedError` for a model that is known to be elsewhere: its name is right, and the region is not."""
    if endpoint.region is None or endpoint.kind not in ("dashscope", "dashscope-compatible"):
        return
    row = available(endpoint.upstream_model)
    if row is not None and endpoint.region not in row.regions:
        message = (
            f'model "{endpoint.name}" is not offered in {endpoint.region}, '
            f"but in {', '.join(row.regions)} (read {row.read})"
        )
        raise UnsupportedError(message, param="model")
