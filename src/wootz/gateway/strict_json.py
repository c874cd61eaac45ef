"""Requests whose JSON means one thing only.

Refused beyond what Python's parser refuses: NaN and infinities (also as 1e999), text that is not Unicode (lone
surrogates), nesting deeper than 200, and a key given twice: two readers, say a filter in front and the model behind,
could each take another one of them.
"""

from __future__ import annotations

import json
import math
from typing import Any

from pydantic_core import from_json
from starlette.requests import Request


class StrictJSONRequest(Request):
    async def json(self) -> Any:
        """Raises `json.JSONDecodeError`, which FastAPI turns into a validation error."""
        return loads(await self.body())


def loads(body: bytes) -> Any:
    """Raises `json.JSONDecodeError`."""
    try:
        value = from_json(body, allow_inf_nan=False, cache_strings="keys")
        # The fast parser keeps the last of two equal keys and reads 1e999 as infinity; this second reading only checks.
        _CHECKING.decode(body.decode())
    except ValueError as error:
        raise json.JSONDecodeError(str(error), "", 0) from None
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> None:
    keys = set[str]()
    for key, _ in pairs:
        if key in keys:
            raise ValueError(f'the key "{key[:40]}" is given twice')
        keys.add(key)


def _finite(digits: str) -> None:
    if math.isinf(float(digits)):
        raise ValueError("a number is too large")


_CHECKING = json.JSONDecoder(object_pairs_hook=_without_duplicates, parse_float=_finite)
