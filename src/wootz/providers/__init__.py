"""Everything that implements `LanguageModel`: the local engine, and remote endpoints, a file for each protocol."""

from wootz.providers.anthropic import AnthropicModel
from wootz.providers.endpoint import Endpoint, Timeouts
from wootz.providers.engine_model import EngineModel
from wootz.providers.gemini import GeminiModel
from wootz.providers.openai_compatible import OpenAICompatibleModel
from wootz.providers.opening import open_models
from wootz.providers.patient import PatientTransport, patient_client

__all__ = [
    "AnthropicModel",
    "Endpoint",
    "EngineModel",
    "GeminiModel",
    "OpenAICompatibleModel",
    "PatientTransport",
    "Timeouts",
    "open_models",
    "patient_client",
]
