"""Inference: scheduler, paged cache, runner, sampling, and the process around them.

    from wootz.engine import Engine, SamplingParams
    for answer in Engine("SmolLM2-135M-Instruct.Q4_1.gguf").generate(["The sea is"], SamplingParams(max_tokens=20)):
        print(answer.text)

Importing this room, `wootz.engine.protocol` or `wootz.engine.client` does not import PyTorch; using `Engine` does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wootz.core import EngineConfig
from wootz.core.errors import MissingExtraError
from wootz.engine.client import EngineClient
from wootz.engine.protocol import SamplingParams, TokenLogprob, Watermark

if TYPE_CHECKING:
    from wootz.engine.engine import Engine
    from wootz.engine.generation import Choice, Generation

__all__ = [
    "Choice",
    "Engine",
    "EngineClient",
    "EngineConfig",
    "Generation",
    "SamplingParams",
    "TokenLogprob",
    "Watermark",
]


def __getattr__(name: str) -> Any:
    if name not in ("Choice", "Engine", "Generation"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module("wootz.engine.engine"), name)
    except ModuleNotFoundError as error:
        if error.name and not error.name.startswith("wootz"):
            raise MissingExtraError("engine", "engine", error.name) from None
        raise
