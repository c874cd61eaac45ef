"""Requests whose JSON means one thing only.

Refused beyond what Python's parser refuses: NaN and infinities (also as 1e999), text that is not Unicode (lone
surrogates), nesting deeper than 200, and a key given twice: two readers, say a filter in front and the model behind,
could each take another one of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import jiter
from starlette.requests import ClientDisconnect, Request


class StrictJSONRequest(Request):
    async def body(self) -> bytes:
        """As the framework's, without a generator in between. Raises `ClientDisconnect`."""
        if not hasattr(self, "_body"):
            pieces, more = list[bytes](), True
            while more:
                message = await self.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                pieces.append(message.get("body", b""))
                more = message.get("more_body", False)
            self._stream_consumed, self._body = True, b"".join(pieces)
        return self._body

    async def json(self) -> Any:
        """Raises `json.JSONDecodeError`, which FastAPI turns into a validation error."""
        return loads(await self.body())


def loads(body: bytes) -> Any:
    """Raises `json.JSONDecodeError`."""
    try:
        value = jiter.from_json(body, allow_inf_nan=False, cache_mode="keys", catch_duplicate_keys=True)
        _check_finite((value,))
    except ValueError as error:
        raise json.JSONDecodeError(str(error), "", 0) from None
    return value


def _check_finite(values: Iterable[Any]) -> None:
    """The parser reads 1e999 as infinity."""
    for value in values:
        if type(value) is float:
            if math.isinf(value):
                raise ValueError("a number is too large")
        elif type(value) is dict:
            _check_finite(value.values())
        elif type(value) is list:
            _check_finite(value)
