"""Adapters that come and go while the platform runs, by vLLM's endpoints. Administrators only: a path is read.

What is loaded here lasts until the platform ends (an engine that starts again is told of it again); what is to stay
stands in the config, ``[models.NAME.adapters]``.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from wootz.core import BadRequestError, NotFoundError
from wootz.gateway.gateway import Gateway
from wootz.gateway.schemas import ModelInfo
from wootz.providers import EngineModel


class LoadAdapterRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    lora_name: str = Field(min_length=1, max_length=200)
    lora_path: str = Field(min_length=1, description="A folder in PEFT's format, on the engine's machine.")
    base_model_name: str | None = Field(default=None, description="Not needed where one model is local.")


class UnloadAdapterRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    lora_name: str


def add_routes(router: APIRouter, gateway: Gateway) -> None:
    @router.post("/v1/load_lora_adapter")
    async def load_adapter(request: Request, body: LoadAdapterRequest) -> ModelInfo:
        """From now on the adapter is a model, under its own name."""
        if body.lora_name in gateway.models:
            raise BadRequestError(f'there is a model "{body.lora_name}" already', param="lora_name")
        base = _base(gateway, body.base_model_name)
        await base.client.load_adapter(body.lora_name, body.lora_path)
        gateway.add_model(base.adapter(body.lora_name), price_of=base.name)
        return ModelInfo.of(base.adapter(body.lora_name), gateway.started)

    @router.post("/v1/unload_lora_adapter")
    async def unload_adapter(request: Request, body: UnloadAdapterRequest) -> ModelInfo:
        """Its name is free at once; answers that have begun go on to their end."""
        model = gateway.models.get(body.lora_name)
        if not isinstance(model, EngineModel) or model.parent is None:
            raise NotFoundError(f'there is no adapter "{body.lora_name[:100]}"', param="lora_name")
        gateway.remove_model(body.lora_name)
        await model.client.unload_adapter(body.lora_name)
        await gateway.caches.purge()
        return ModelInfo.of(model, gateway.started)


def _base(gateway: Gateway, name: str | None) -> EngineModel:
    local = [model for model in gateway.models.values() if isinstance(model, EngineModel) and model.parent is None]
    if found := next((model for model in local if model.name == name), None):
        return found
    if name is None and len(local) == 1:
        return local[0]
    names = ", ".join(model.name for model in local) or "none"
    raise BadRequestError(f"name the local model that it is for (there are: {names})", param="base_model_name")
