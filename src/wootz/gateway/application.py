"""FastAPI with our own layers for its outermost, and without the three that it puts around them.

They answer what nobody foresaw, bound bodies and trace requests, which `wootz.gateway.middleware` does with our error
bodies and our record; and every one of them takes its time of each answer.
"""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from starlette.middleware import Middleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send


class Application(FastAPI):
    def build_middleware_stack(self) -> ASGIApp:
        inner = [
            Middleware(ExceptionMiddleware, handlers=self.exception_handlers),
            Middleware(AsyncExitStackMiddleware),
        ]
        app: ASGIApp = self.router
        for layer, args, kwargs in reversed([*self.user_middleware, *inner]):
            app = layer(app, *args, **kwargs)
        return app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.middleware_stack is not None:
            scope["app"] = self
            return await self.middleware_stack(scope, receive, send)
        await super().__call__(scope, receive, send)
