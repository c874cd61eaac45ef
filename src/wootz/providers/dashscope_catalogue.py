"""Which of DashScope's native services each model is on, as dated data: ``dashscope_models.json``.

Names change every month, so the table has patterns and not a list of names, and it says when it was true. It decides
where a request goes and how a refusal is worded; what DashScope itself says wins. What a chat model can do, and which
models the OpenAI-compatible surface lacks (pictures, videos, speech), is in ``capabilities.toml``.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from pydantic_core import from_json

Kind = Literal["chat", "embedding", "rerank", "image", "video", "speech", "transcription"]

TEXT_SERVICE = "aigc/text-generation/generation"
MULTIMODAL_SERVICE = "aigc/multimodal-generation/generation"
SPEECH_SERVICE = "audio/tts/SpeechSynthesizer"

TASK_KINDS: tuple[Kind, ...] = ("image", "video", "speech", "transcription")
"""What is not answered but made: see `wootz.core.media`."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    kind: Kind = "chat"
    service: str = TEXT_SERVICE
    """The path below ``/services/``."""
    batch: int = 10
    """How many texts one embedding request may hold."""
    dimensions: tuple[int, ...] = ()


def facts_of(model: str) -> ModelFacts:
    """By the first pattern that fits DashScope's own name of it."""
    for pattern, facts in _patterns():
        if fnmatchcase(model, pattern):
            return facts
    return ModelFacts()


@cache
def _patterns() -> list[tuple[str, ModelFacts]]:
    table: dict[str, Any] = from_json((files("wootz.providers") / "dashscope_models.json").read_bytes())
    patterns = []
    for entry in table["models"]:
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
        }
        patterns.append((fields.pop("pattern"), ModelFacts(**fields)))
    return patterns
