"""From the configuration to models that answer."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from wootz.core import Config, ConfigError, LanguageModel, ModelConfig
from wootz.core.secrets import SECRET_SCHEMES, Secret, read_secret, source_of
from wootz.core.sections import ProviderConfig, ProviderKind
from wootz.engine.client import EngineClient
from wootz.providers.anthropic import AnthropicModel
from wootz.providers.dashscope import open_dashscope
from wootz.providers.dialects import DIALECTS
from wootz.providers.endpoint import Endpoint, Timeouts
from wootz.providers.engine_model import EngineModel
from wootz.providers.gemini import GeminiModel
from wootz.providers.live_key import LiveKey
from wootz.providers.openai_compatible import OpenAICompatibleModel

PROVIDERS: dict[ProviderKind, Callable[[Endpoint], LanguageModel]] = {
    **dict.fromkeys(DIALECTS, OpenAICompatibleModel),
    "anthropic": AnthropicModel,
    "gemini": GeminiModel,
    "dashscope": open_dashscope,
}
"""What makes a model of each kind of provider. A new kind is a file, a line here and one in `ProviderKind`."""

BASE_URLS: dict[tuple[ProviderKind, str | None], str] = {
    ("openai", None): "https://api.openai.com/v1",
    ("anthropic", None): "https://api.anthropic.com/v1",
    ("gemini", None): "https://generativelanguage.googleapis.com/v1beta",
    ("deepseek", None): "https://api.deepseek.com/v1",
    ("ollama", None): "http://127.0.0.1:11434/v1",
    ("dashscope", None): "https://dashscope.aliyuncs.com/api/v1",
    ("dashscope", "cn-beijing"): "https://dashscope.aliyuncs.com/api/v1",
    ("dashscope", "ap-southeast-1"): "https://dashscope-intl.aliyuncs.com/api/v1",
    ("dashscope", "us-east-1"): "https://dashscope-us.aliyuncs.com/api/v1",
    ("dashscope", "cn-hongkong"): "https://cn-hongkong.dashscope.aliyuncs.com/api/v1",
    ("dashscope-compatible", None): "https://dashscope.aliyuncs.com/compatible-mode/v1",
    ("dashscope-compatible", "cn-beijing"): "https://dashscope.aliyuncs.com/compatible-mode/v1",
    ("dashscope-compatible", "ap-southeast-1"): "https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
    ("dashscope-compatible", "us-east-1"): "https://dashscope-us.aliyuncs.com/compatible-mode/v1",
    ("dashscope-compatible", "cn-hongkong"): "https://cn-hongkong.dashscope.aliyuncs.com/compatible-mode/v1",
}
"""Each kind's own address, by region where it has several. (DashScope's in Tokyo and Frankfurt have a workspace's name
in them: ``base_url``.)"""


def open_models(config: Config, sockets: Mapping[str, Path]) -> dict[str, LanguageModel]:
    """Every configured model by its name; ``sockets`` holds the engine process's socket of each local one.

    Call it in a running event loop: engine clients begin to connect. Raises `ConfigError` for a key reference that
    names nothing and for an address that is none.
    """
    endpoints = {name: endpoint_of(config, name) for name, model in config.models.items() if not model.is_local}
    models: dict[str, LanguageModel] = {}
    for name, model in config.models.items():
        if endpoint := endpoints.get(name):
            models[name] = PROVIDERS[endpoint.kind](endpoint)
        else:
            local = models[name] = _open_local(name, model, sockets[name])
            models |= {adapter: local.adapter(adapter) for adapter in model.adapters}
    return models


def _open_local(name: str, model: ModelConfig, socket: Path) -> EngineModel:
    client = EngineClient(socket)
    client.start()
    return EngineModel(name, client, model.sampling)


def endpoint_of(config: Config, name: str) -> Endpoint:
    """Where the remote model ``name`` is answered, its references resolved."""
    model = config.models[name]
    if model.provider is not None:
        account, where = config.providers[model.provider], f"providers.{model.provider}"
    else:
        account, where = ProviderConfig(base_url=model.base_url, api_key=model.api_key), f"models.{name}"
    timeouts = Timeouts(
        connect=min(account.connect_seconds, model.timeout_seconds),
        first_token=account.first_token_seconds,
        silence=model.timeout_seconds,
        total=account.total_seconds,
    )
    return Endpoint(
        name,
        _base_url(account, where),
        _key(account.api_key, f"{where}.api_key") if account.api_key else None,
        upstream_model=model.upstream_model or name,
        kind=account.kind,
        region=account.region,
        timeouts=timeouts,
        headers={name: _header(name, value, f"{where}.headers.{name}") for name, value in account.headers.items()},
        prompt_cache=account.prompt_cache,
        ask_whole=account.ask_whole,
    )


def _base_url(account: ProviderConfig, where: str) -> str:
    base_url = account.base_url or BASE_URLS.get((account.kind, account.region))
    if base_url is None:
        regions = sorted(region for kind, region in BASE_URLS if kind == account.kind and region)
        missing = f"region: must be one of {', '.join(regions)}" if regions else "base_url: is missing"
        raise ConfigError(f"{where}.{missing}")
    address = urlsplit(base_url)
    if address.scheme not in ("http", "https") or not address.hostname or not _has_good_port(address):
        raise ConfigError(f"{where}.base_url: not an http:// or https:// address")
    if address.password:
        raise ConfigError(f"{where}.base_url: holds a password", hint="give it as api_key")
    return base_url


def _has_good_port(address: SplitResult) -> bool:
    try:
        return address.port != 0
    except ValueError:
        return False


def _header(name: str, reference: str, used_by: str) -> LiveKey | str:
    if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name):
        raise ConfigError(f"{used_by}: is no name of a header")
    if reference.startswith(SECRET_SCHEMES):
        return _key(reference, used_by)
    if not (reference.isascii() and reference.isprintable()):
        raise ConfigError(f"{used_by}: holds characters that no header has")
    return reference


def _key(reference: str, used_by: str) -> LiveKey:
    def read() -> Secret:
        secret = read_secret(reference, used_by=used_by)
        if not (secret.value.isascii() and secret.value.isprintable()):
            raise ConfigError(f'{used_by}: secret "{reference}" holds characters that no key has')
        return secret

    if source := source_of(reference, used_by=used_by):
        name, user = reference.partition(":")[2], f"{used_by} on {socket.gethostname()}"
        return LiveKey(read, lambda uses: source.count_uses(name, uses, user))
    return LiveKey(read)
