"""Models, written once over a flat run of tokens; see `wootz.models.context`.

    model = wootz.models.load("SmolLM2-135M-Instruct.Q4_1.gguf")
    logits_TV = model.logits([1, 4093, 28])

Importing this room does not import PyTorch; using it does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wootz.core.errors import MissingExtraError

if TYPE_CHECKING:
    from wootz.models.context import CacheSpec, Context, LatentKV, PackedContext, PagedKV, RecurrentState
    from wootz.models.converting import convert
    from wootz.models.decoder import Decoder, DecoderConfig, LayerConfig
    from wootz.models.encoder import Encoder
    from wootz.models.families import read_config
    from wootz.models.linear import Linear
    from wootz.models.loading import load, load_encoder
    from wootz.models.saving import save

_HOMES = {
    "Encoder": "encoder",
    "convert": "converting",
    "load_encoder": "loading",
    "save": "saving",
    "CacheSpec": "context",
    "Context": "context",
    "Decoder": "decoder",
    "DecoderConfig": "decoder",
    "LatentKV": "context",
    "LayerConfig": "decoder",
    "Linear": "linear",
    "PackedContext": "context",
    "PagedKV": "context",
    "RecurrentState": "context",
    "load": "loading",
    "read_config": "families",
}

__all__ = [
    "CacheSpec",
    "Context",
    "Decoder",
    "DecoderConfig",
    "Encoder",
    "LatentKV",
    "LayerConfig",
    "Linear",
    "PackedContext",
    "PagedKV",
    "RecurrentState",
    "convert",
    "load",
    "load_encoder",
    "read_config",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name and not error.name.startswith("wootz"):
            raise MissingExtraError("models", "engine", error.name) from None
        raise
