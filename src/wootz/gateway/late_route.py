"""Routes that FastAPI analyses when they are first needed.

To analyse a function's parameters, body and answer is 2 ms, and this house has some 130 routes: a third of a second of
every start, for routes most of which are not called for hours. A path and the methods are enough to find a route, so
the rest is done by whoever first asks for it: the first request that matches, or ``/openapi.json`` for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi.routing import APIRoute
from starlette.routing import compile_path, get_name


class LateRoute(APIRoute):
    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        self.path, self.endpoint = path, endpoint
        self.path_regex, self.path_format, self.param_convertors = compile_path(path)
        self.name = options.get("name") or get_name(endpoint)
        self.methods = {method.upper() for method in options.get("methods") or ["GET"]}
        self._options = options

    def __getattr__(self, name: str) -> Any:
        """Asked for only what is not there yet."""
        if (options := self.__dict__.pop("_options", None)) is None:
            raise AttributeError(f'a route has no "{name}"', name=name, obj=self)
        super().__init__(self.path, self.endpoint, **options)
        return getattr(self, name)
