"""From the configuration to models that answer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from wootz.core import Config, ConfigError, LanguageModel, ModelConfig, resolve_secret
from wootz.engine.client import EngineClient
from wootz.providers.engine_model import EngineModel
from wootz.providers.openai_compatible import OpenAICompatibleModel


def open_models(config: Config, sockets: Mapping[str, Path]) -> dict[str, LanguageModel]:
    """Every configured model by its name; ``sockets`` holds the engine process's socket of each local one.

    Call it in a running event loop: engine clients begin to connect. Raises `ConfigError` for a key reference that
    names nothing and for an address that is none.
    """
    remote = {name: _open_remote(name, model) for name, model in config.models.items() if not model.is_local}
    models: dict[str, LanguageModel] = {}
    for name, model in config.models.items():
        models[name] = remote.get(name) or _open_local(name, model, sockets[name])
        if isinstance(local := models[name], EngineModel):
            models |= {adapter: local.adapter(adapter) for adapter in model.adapters}
    return models


def _open_local(name: str, model: ModelConfig, socket: Path) -> EngineModel:
    client = EngineClient(socket)
    client.start()
    return EngineModel(name, client, model.sampling)


def _open_remote(name: str, model: ModelConfig) -> OpenAICompatibleModel:
    base_url = model.base_url or ""
    address = urlsplit(base_url)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise ConfigError(f"models.{name}.base_url: not an http:// or https:// address")
    api_key = None
    if model.api_key is not None:
        api_key = resolve_secret(model.api_key, used_by=f"models.{name}.api_key")
        if not (api_key.isascii() and api_key.isprintable()):
            raise ConfigError(f'models.{name}.api_key: secret "{model.api_key}" holds characters that no key has')
    return OpenAICompatibleModel(
        name,
        base_url=base_url,
        api_key=api_key,
        upstream_model=model.upstream_model,
        timeout=model.timeout_seconds,
    )
