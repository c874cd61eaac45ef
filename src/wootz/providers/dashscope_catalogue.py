"""What DashScope offers where, as dated data: ``dashscope_models.json``.

Each model has a native *service* (a path), and only some are on the OpenAI-compatible surface too: images, videos,
speech and ranking are native only. Names change every month, so the table has patterns and not a list of names, and it
says when it was true. It decides where a request goes and how a refusal is worded; what DashScope itself says wins.
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

TASK_KINDS: tuple[Kind, ...] = ("image", "video", "speech", "transcription")
"""What is not answered but made: see `wootz.core.media`."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    kind: Kind = "chat"
    service: str = TEXT_SERVICE
    """The path below ``/services/``."""
    compatible: bool = True
    """Whether it is on ``/compatible-mode/v1`` too."""
    only_streams: bool = False
    thinks: Literal["always", "when asked", "never"] | None = None
    """None where the table does not know."""
    batch: int = 10
    """How many texts one embedding request may hold."""
    dimensions: tuple[int, ...] = ()
    regions: tuple[str, ...] = ()
    """Empty: every region."""


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
        fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
        patterns.append((fields.pop("pattern"), ModelFacts(**fields)))
    return patterns
