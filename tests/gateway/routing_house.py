"""For tests of routes: a clock that only moves when told, models with a script for each call, routes over them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from random import Random
from typing import Any

from serving import HANG, ScriptedModel

from wootz.core.sections import RouteConfig
from wootz.core.wire import ChatChunk, ChatRequest
from wootz.gateway.routing import Deployment, Route, Target


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


class Turns(ScriptedModel):
    """A script for each call; the last one holds for all that come after."""

    def __init__(self, name: str, *turns: list[Any]) -> None:
        super().__init__(name)
        self.turns = list(turns) or [[f"I am {name}"]]

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        self.script = self.turns.pop(0) if len(self.turns) > 1 else self.turns[0]
        async for chunk in super().chat(request):
            yield chunk


def route_over(
    *models: Any, clock: Clock | None = None, fallbacks: tuple[Any, ...] = (), seed: int = 0, **config: Any
) -> Route:
    clock = clock or Clock()
    options = {"targets": [model.name for model in models], "fallbacks": [model.name for model in fallbacks]}
    settings = RouteConfig.model_validate(options | config)
    targets = [
        Target(
            deployment=Deployment(model, clock), weight=target.weight, region=target.region, capacity=target.capacity
        )
        for model, target in zip(models, settings.targets, strict=True)
    ]
    others = [Deployment(model, clock) for model in fallbacks]
    return Route("way", settings, targets, others, sleep=clock.sleep, random=Random(seed))


def question(text: str = "hi", **fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "way", "messages": [{"role": "user", "content": text}], **fields})


__all__ = ["HANG", "Clock", "Turns", "question", "route_over"]
