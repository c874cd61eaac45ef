"""Shared types, config, errors, progress: small, and imports nothing of ours."""

from wootz.core.config import (
    EMBEDDED_MODEL,
    EMBEDDED_MODEL_SOURCE,
    Config,
    LoadedConfig,
    load_config,
)
from wootz.core.errors import (
    AuthenticationError,
    BadRequestError,
    ConfigError,
    MissingExtraError,
    ModelFileError,
    NotFoundError,
    PayloadTooLargeError,
    PermissionError_,
    RateLimitError,
    UnavailableError,
    UnsupportedError,
    UpstreamError,
    WootzError,
)
from wootz.core.progress import SILENT, Progress, progress_bar
from wootz.core.protocol import LanguageModel, collect_chat, collect_completion, fold_chat, fold_completion
from wootz.core.secrets import resolve_secret
from wootz.core.sections import EngineConfig, ModelConfig, PriceConfig, SpeculationConfig

__all__ = [
    "EMBEDDED_MODEL",
    "EMBEDDED_MODEL_SOURCE",
    "SILENT",
    "AuthenticationError",
    "BadRequestError",
    "Config",
    "ConfigError",
    "EngineConfig",
    "LanguageModel",
    "LoadedConfig",
    "MissingExtraError",
    "ModelConfig",
    "ModelFileError",
    "NotFoundError",
    "PayloadTooLargeError",
    "PermissionError_",
    "PriceConfig",
    "Progress",
    "RateLimitError",
    "SpeculationConfig",
    "UnavailableError",
    "UnsupportedError",
    "UpstreamError",
    "WootzError",
    "collect_chat",
    "collect_completion",
    "fold_chat",
    "fold_completion",
    "load_config",
    "progress_bar",
    "resolve_secret",
]
