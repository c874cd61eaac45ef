"""Everything that implements `LanguageModel`: the local engine, and remote endpoints that speak OpenAI's protocol."""

from wootz.providers.anthropic import AnthropicModel
from wootz.providers.endpoint import Endpoint, Timeouts
from wootz.providers.engine_model import EngineModel
from wootz.providers.openai_compatible import OpenAICompatibleModel
from wootz.providers.opening import open_models

__all__ = ["AnthropicModel", "Endpoint", "EngineModel", "OpenAICompatibleModel", "Timeouts", "open_models"]
