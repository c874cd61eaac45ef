"""The parts of the config tree, a file for each concern; `core/config.py` puts them together and reads them."""

from wootz.core.sections.admission import AdmissionConfig
from wootz.core.sections.alerts import AlertsConfig, WebhookConfig
from wootz.core.sections.batches import BatchesConfig
from wootz.core.sections.caches import CachesConfig, ExactCacheConfig, SemanticCacheConfig
from wootz.core.sections.drift import DriftConfig
from wootz.core.sections.engine import EngineConfig, SpeculationConfig
from wootz.core.sections.identity import IdentityConfig, OidcConfig
from wootz.core.sections.limits import LimitsConfig
from wootz.core.sections.migrations import MigrationsConfig
from wootz.core.sections.models import ModelConfig, PriceConfig, SamplingConfig
from wootz.core.sections.providers import ProviderConfig, ProviderKind
from wootz.core.sections.routes import RouteConfig
from wootz.core.sections.secrets import SecretsConfig
from wootz.core.sections.section import Section
from wootz.core.sections.server import DatabaseConfig, ServerConfig
from wootz.core.sections.telemetry import TelemetryConfig

__all__ = [
    "AdmissionConfig",
    "AlertsConfig",
    "BatchesConfig",
    "CachesConfig",
    "DatabaseConfig",
    "DriftConfig",
    "EngineConfig",
    "ExactCacheConfig",
    "IdentityConfig",
    "LimitsConfig",
    "MigrationsConfig",
    "ModelConfig",
    "OidcConfig",
    "PriceConfig",
    "ProviderConfig",
    "ProviderKind",
    "RouteConfig",
    "SamplingConfig",
    "SecretsConfig",
    "Section",
    "SemanticCacheConfig",
    "ServerConfig",
    "SpeculationConfig",
    "TelemetryConfig",
    "WebhookConfig",
]
