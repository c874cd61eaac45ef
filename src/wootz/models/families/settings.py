"""Everything that a config of our own family may say."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, TypedDict

from wootz.core.errors import ConfigError, NotFoundError


class Settings(TypedDict, total=False):
    """Required are the sizes: ``vocab_size``, ``hidden_size``, ``num_hidden_layers`` and ``num_attention_heads``."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    initializer_range: float
    bos_token_id: int
    eos_token_id: int | list[int]

    layers: str
    """A pattern of letters; see `wootz.models.families.wootz`."""
    norm: str
    """rms or layer."""
    norm_eps: float
    norm_placement: str
    """pre, post, output, sandwich or none."""
    parallel: bool

    positions: str
    """A scheme, several with "+", or a list with commas that repeats over the layers."""
    rope_theta: float
    rope_parameters: dict[str, Any]
    context_extension: dict[str, Any]
    """What `wootz.models.positions.extension` did."""

    num_attention_heads: int
    head_dim: int
    attention: str
    """mha, mqa or gqa:K."""
    sliding_window: int
    """Of W and N."""
    qk_norm: bool
    softcap: float
    sinks: bool
    latent_dim: int
    """Of L."""
    sparse_block: int
    sparse_selected: int
    """Of N: tokens of a block, and how many blocks a token reads."""

    random_features: int
    """Of I: so many of Performer's, in place of ``elu + 1``."""
    state_size: int
    """Numbers of state per channel: of M, S and 4; of G, per number of a value."""
    expand: int
    """How many times wider than the model M and S are inside."""
    conv_width: int
    """Of M, S and C."""

    ffn: str
    """swiglu, geglu, reglu, glu, bilinear, gelu, relu, relu2, silu, rwkv, or experts in every layer: moe:ExK[+S]."""
    intermediate_size: int
    experts: str
    """ExK[+S]: of the layers that are marked with "e"."""
    expert_size: int
    """Width of an expert; ``intermediate_size`` if there is none."""
    router_gates: str
    router_balance_bias: bool
    router_capacity_factor: float


def read_settings(file: Path) -> dict[str, Any]:
    """Of a TOML or JSON file. Raises `NotFoundError`, or `ConfigError` for anything else that is wrong with it."""
    if not file.is_file():
        raise NotFoundError(f"{file}: no such file")
    try:
        settings = (tomllib.loads if file.suffix == ".toml" else json.loads)(file.read_text())
    except ValueError as error:
        raise ConfigError(f"{file}: not a TOML or JSON file ({error})") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{file}: describes no model")
    known = Settings.__annotations__
    if unknown := sorted(settings.keys() - known.keys()):  # misspelt, it would be ignored in silence
        raise ConfigError(
            f"{file}: no setting is called {', '.join(unknown)}", hint=f"there are {', '.join(sorted(known))}"
        )
    return settings
