"""What a family is, and what reading its configs has in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from wootz.models.positions.scaling import (
    DynamicNTKScaling,
    FrequencyFactors,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    NTKScaling,
    RopeScaling,
    YarnScaling,
)

View = Callable[[Tensor, int], dict[str, Tensor]]
"""For weights that are not simply cut by rows: ``view(our parameter, layer) -> their names and views into it``."""

Names = Mapping[str, str | tuple[str, ...] | View]
"""Our modules, or parameters, to what checkpoints call them; ``{i}`` stands for the layer's number on both sides.

- A module's name (``layers.{i}.mixer.qkv``) maps to their module, or to one for each part of a `Linear`; ".weight" and
  ".bias" are appended.
- A parameter's whole name (``layers.{i}.mixer.A_log``) maps to their whole name.
- A `View` on a parameter's whole name does the rest: experts in one tensor, transposed or interleaved rows.
"""


class ModelConfig(Protocol):
    """What every model's config has. `DecoderConfig` is one."""

    @property
    def family(self) -> str: ...
    @property
    def raw(self) -> Mapping[str, Any]: ...
    def build(self) -> nn.Module: ...


@dataclass(frozen=True, kw_only=True)
class Family:
    model_types: tuple[str, ...]
    read_config: Callable[[dict[str, Any]], ModelConfig]
    """Raises KeyError for what is missing and ValueError, with a message for the user, for what we cannot run."""
    names: Names
    prefix: str = ""
    """What some checkpoints put before every name of ``names`` and others leave out ("bert.")."""
    ignored: tuple[str, ...] = ()
    """Regular expressions of checkpoint tensors that carry nothing we need."""


def refuse_unless(condition: object, message: str) -> None:
    if not condition:
        raise ValueError(message)


def end_tokens(raw: Mapping[str, Any]) -> tuple[int, ...]:
    end = raw.get("eos_token_id")
    return tuple(end) if isinstance(end, list | tuple) else () if end is None else (end,)


def rope_parameters(raw: Mapping[str, Any], layer_type: str | None = None) -> dict[str, Any]:
    """Transformers 5 writes all of it under ``rope_parameters``, by layer type where they differ; before, it was
    ``rope_theta`` and, if any, ``rope_scaling``. The lengths that scaling rules need, which may stand elsewhere, are
    added: ``max_position_embeddings`` and ``original_max_position_embeddings``."""
    rope = raw.get("rope_parameters") or {
        "rope_theta": raw.get("rope_theta", 10_000.0),
        **(raw.get("rope_scaling") or {}),
    }
    rope = rope.get(layer_type, rope) if layer_type else rope
    longest = raw.get("max_position_embeddings")
    lengths = {
        "max_position_embeddings": longest,
        "original_max_position_embeddings": raw.get("original_max_position_embeddings", longest),
    }
    return lengths | rope


def rope_scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    """The rule that `rope_parameters` describe, with the defaults of transformers."""
    match rope.get("rope_type", rope.get("type", "default")):
        case "default":
            return None
        case "linear":
            return LinearScaling(rope["factor"])
        case "ntk":
            return NTKScaling(rope["factor"])
        case "dynamic":
            return DynamicNTKScaling(rope["factor"], rope["max_position_embeddings"])
        case "yarn":
            return YarnScaling(
                _factor(rope),
                rope["original_max_position_embeddings"],
                rope.get("beta_fast") or 32.0,
                rope.get("beta_slow") or 1.0,
                rope.get("truncate", True),
                rope.get("attention_factor"),
                rope.get("mscale"),
                rope.get("mscale_all_dim"),
            )
        case "longrope" | "su":
            return LongRopeScaling(
                tuple(rope["short_factor"]),
                tuple(rope["long_factor"]),
                rope["original_max_position_embeddings"],
                _factor(rope),
                rope.get("attention_factor"),
                rope.get("unscaled_tokens", 0),
            )
        case "llama3":
            return Llama3Scaling(
                rope["factor"],
                rope["low_freq_factor"],
                rope["high_freq_factor"],
                rope["original_max_position_embeddings"],
            )
        case "frequency_factors":
            return FrequencyFactors(tuple(rope["factors"]))
        case kind:
            known = "default, linear, ntk, dynamic, yarn, longrope and llama3"
            raise ValueError(f'rotary scaling "{kind}" is not supported ({known} are)')


def context_length(raw: Mapping[str, Any]) -> int:
    """The longest text of a model. With dynamic scaling, ``max_position_embeddings`` is what it was trained on."""
    longest, scaling = raw["max_position_embeddings"], rope_scaling(rope_parameters(raw))
    return scaling.longest or longest if isinstance(scaling, DynamicNTKScaling) else longest


def _factor(rope: Mapping[str, Any]) -> float:
    """Where none is given: how much longer the longest text is than those of the training."""
    return rope.get("factor") or rope["max_position_embeddings"] / rope["original_max_position_embeddings"]


def windows(raw: Mapping[str, Any], *, used: bool = True) -> list[int | None]:
    """Each layer's sliding window, by ``layer_types`` if the config has them."""
    num_layers, window = raw["num_hidden_layers"], raw.get("sliding_window") if used else None
    types = raw.get("layer_types") or ["sliding_attention"] * num_layers
    return [window if kind == "sliding_attention" else None for kind in types]
