"""Models made of other models' weights: fewer key-value heads, heads tied to the embedding and untied,
rotary positions stretched or laid out in the other way.

Each takes a model and gives another, in the same dtype and on the same device; the first is left as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wootz.core.errors import ConfigError, UnsupportedError
from wootz.models import families
from wootz.models.blocks.attention import Attention
from wootz.models.decoder import Decoder
from wootz.models.positions.extension import Method, extend
from wootz.models.positions.layout import convert_layout


def share_kv_heads(model: Decoder, num_kv_heads: int) -> Decoder:
    """Grouped-query attention out of one with more key-value heads: each new one is the mean of those that it replaces
    (arXiv 2305.13245, where a little more training then restores the quality).

    Exact if the heads of each group were equal. Raises `ConfigError` when ``num_kv_heads`` does not divide theirs.
    """
    for layer in model.layers:
        mixer = getattr(layer, "mixer", None)
        if not isinstance(mixer, Attention):
            raise ConfigError(f"{model.config.family}: not every layer has key-value heads to share")
        config = mixer.config
        if num_kv_heads < 1 or config.num_kv_heads % num_kv_heads:
            raise ConfigError(f"{config.num_kv_heads} key-value heads cannot be shared by {num_kv_heads}")
        if config.qk_norm is not None and config.qk_norm_over == "all":
            raise ConfigError(f"{model.config.family}: its keys are normalised over all heads, which cannot be shared")
    new = _rebuilt(model, {**model.config.raw, "num_key_value_heads": num_kv_heads})
    state = model.state_dict()
    for i, layer in enumerate(model.layers):
        mixer = layer.mixer
        assert isinstance(mixer, Attention)
        for leaf in ("weight", "bias"):
            if (rows := state.get(name := f"layers.{i}.mixer.qkv.{leaf}")) is not None:
                q, k, v = rows.split(mixer.qkv.parts)
                state[name] = torch.cat((q, *(_mean_of_heads(x, mixer.config.head_dim, num_kv_heads) for x in (k, v))))
    new.load_state_dict(state)
    return new


def _mean_of_heads(rows: Tensor, head_dim: int, num_heads: int) -> Tensor:
    groups = rows.float().unflatten(0, (num_heads, -1, head_dim))
    return groups.mean(1).flatten(0, 1).to(rows.dtype)


def untie(model: Decoder) -> Decoder:
    """The head becomes a copy of the embedding, free to be trained apart. Computes the same."""
    new = _rebuilt(model, {**model.config.raw, "tie_word_embeddings": False})
    new.load_state_dict(model.state_dict())
    return new


def tie(model: Decoder) -> Decoder:
    """The head reads the embedding. Raises `ConfigError` when the two differ, as the model would compute otherwise."""
    if not torch.equal(model.head.weight, model.embedding.weight):
        raise ConfigError("the head's weights differ from the embedding's, so tying them would change the model")
    new = _rebuilt(model, {**model.config.raw, "tie_word_embeddings": True})
    new.load_state_dict(model.state_dict())
    return new


def stretch(
    model: Decoder,
    method: Method,
    factor: float,
    *,
    long_factors: Sequence[float] | None = None,
    unscaled_tokens: int = 0,
) -> Decoder:
    """The same weights, for texts ``factor`` times longer; see `wootz.models.positions.extension.extend`."""
    raw = extend(model.config.raw, method, factor, long_factors=long_factors, unscaled_tokens=unscaled_tokens)
    new = _rebuilt(model, raw)
    new.load_state_dict(model.state_dict())
    return new


def other_layout(model: Decoder) -> Decoder:
    """Rotary pairs interleaved where they were half-split, and the other way round. Computes the same.

    Raises `UnsupportedError` for families whose configs have no word for that.
    """
    raw, layouts = dict(model.config.raw), {"rope": "rope-interleaved", "rope-interleaved": "rope"}
    if model.config.family != "wootz" or (positions := raw.get("positions", "rope")) not in layouts:
        raise UnsupportedError(
            f'"{model.config.family}" has one rotary layout only', hint='models of "wootz" have both'
        )
    new = _rebuilt(model, {**raw, "positions": layouts[positions]})
    convert_layout(model, new)
    return new


def _rebuilt(model: Decoder, raw: dict[str, Any]) -> Decoder:
    """A model of another config, without weights."""
    with torch.device("meta"):
        new = families.read_config(raw).build()
    assert isinstance(new, Decoder)
    new.to(model.dtype).to_empty(device=model.device)
    new.tie_weights()
    return new.train(model.training)
