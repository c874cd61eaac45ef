"""Two mistakes with positions that nothing else would notice: both run, and write nonsense."""

from __future__ import annotations

import warnings

from torch import nn

from wootz.core.errors import ConfigError
from wootz.models.positions.rotary import Rotary


def scheme_of(model: nn.Module) -> str:
    """How a model tells places apart, in the words of `wootz.models.positions.schemes`: ``rope+t5``; ``nope`` if
    nothing in it does. (Stretching a rotary scheme does not make it another.)"""
    words = set()
    for name, module in model.named_modules():
        if isinstance(module, Rotary):
            layout = "rope-interleaved" if module.config.interleaved else "rope"
            words.add("xpos" if module.config.decay else layout)
        elif name.rpartition(".")[2] in ("score_bias", "embedding_positions"):
            words.add(type(module).__name__.lower())
    return "+".join(sorted(words)) or "nope"


def warn_beyond(length: int, longest: int) -> None:
    """Say so when a text is longer than any that the model was made for."""
    if length > longest:
        warnings.warn(
            f"a text of {length} tokens, and this model was made for at most {longest}: expect nonsense from there on",
            stacklevel=3,
        )


def refuse_swap(trained: str, asked: str, *, what: str = "these weights", force: bool = False) -> None:
    """Weights that learned one scheme know nothing of another. Raises `ConfigError` unless forced."""
    if trained != asked and not force:
        raise ConfigError(
            f'{what} were trained with positions "{trained}", and the config says "{asked}"',
            hint="set the config right, or force it and train on",
        )
