"""An administrator's hands on the local engines: put one to sleep, wake it, give it new weights.

Names follow vLLM's (``/sleep``, ``/wake_up``), under the model that is meant.
"""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from wootz.core import UnsupportedError
from wootz.engine.client import EngineClient
from wootz.gateway.gateway import Gateway
from wootz.providers import EngineModel


class SleepRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    level: Literal[1, 2] = Field(default=1, description="1 keeps the weights in host memory, 2 frees them too.")


class WeightsRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    path: str = Field(min_length=1, description="A checkpoint of the same architecture, on the server's machine.")


class EngineState(BaseModel):
    model: str
    state: Literal["awake", "asleep"]


def add_routes(router: APIRouter, gateway: Gateway) -> None:
    @router.post("/admin/models/{model:path}/sleep")
    async def sleep(model: str, body: SleepRequest) -> EngineState:
        """Free the cache and the device's weights. Requests wait until the model is woken."""
        await _engine(gateway, model).sleep(body.level)
        return EngineState(model=model, state="asleep")

    @router.post("/admin/models/{model:path}/wake_up")
    async def wake(model: str) -> EngineState:
        await _engine(gateway, model).wake()
        return EngineState(model=model, state="awake")

    @router.post("/admin/models/{model:path}/weights")
    async def update_weights(model: str, body: WeightsRequest) -> EngineState:
        """Go on with the weights of another checkpoint. Requests in flight keep the tokens they have."""
        client = _engine(gateway, model)
        await client.update_weights(body.path)
        await gateway.caches.purge()
        return EngineState(model=model, state="asleep" if (await client.stats()).asleep else "awake")


def _engine(gateway: Gateway, name: str) -> EngineClient:
    model = gateway.model(None, name)
    if not isinstance(model, EngineModel):
        raise UnsupportedError(f'model "{name}" is not computed here', param="model")
    return model.client
