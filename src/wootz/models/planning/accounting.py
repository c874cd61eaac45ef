"""Parameters, cache and arithmetic of a model, counted on the meta device: nothing is allocated.

The counts are of the very modules that would run. Of E routed experts only the k chosen ones are *active* for a token;
all other parameters are, by the field's convention also the whole embedding table.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch

from wootz.models.blocks.moe import active_parameters
from wootz.models.context import LatentKV, PagedKV, RecurrentState
from wootz.models.decoder import Decoder
from wootz.models.families import read_config


@dataclass(frozen=True)
class Parameters:
    """Numbers of weights. A shared block, and a tied head, count once."""

    by_part: dict[str, int]
    """Embedding, head, each kind of mixer, feed-forward parts, experts, routers, norms."""
    total: int
    active: int
    multiplied: int
    """Active, but for an embedding table that is only looked up in: what each token costs arithmetic for."""

    @property
    def sparsity(self) -> float:
        return self.total / self.active


def on_meta(raw: dict[str, Any]) -> Decoder:
    """The model that a ``config.json`` describes, without weights."""
    with torch.device("meta"):
        model = read_config(raw).build()
    if not isinstance(model, Decoder):
        raise ValueError(f'"{raw["model_type"]}" is not a decoder')
    return model


def count_parameters(model: Decoder) -> Parameters:
    parts: Counter[str] = Counter()
    looked_up, seen = 0, set[int]()
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            part = _part(model, f"{path}.{name}")
            parts[part] += parameter.numel()
            if part == "embedding" and not model.config.tie_embeddings:
                looked_up += parameter.numel()
    active = active_parameters(model)
    return Parameters(dict(parts.most_common()), parts.total(), active, active - looked_up)


def _part(model: Decoder, path: str) -> str:
    top, _, rest = path.partition(".")
    if top != "layers":
        return "norms" if "norm" in top else top
    _, _, rest = rest.partition(".")
    part, _, inside = rest.partition(".")
    if "norm" in part:
        return "norms"
    if part == "ffn":
        return "router" if "router" in inside else "experts" if "experts" in inside else "feed-forward"
    mixer = type(model.get_submodule(path.rpartition(f".{inside}")[0])).__name__
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", mixer).lower()


@dataclass(frozen=True)
class CacheCost:
    """What one sequence keeps. Bytes depend on the length only as far as layers look back."""

    bytes_per_token: float
    """While no window is full."""
    fixed_bytes: int
    """Running states, whatever the length."""
    _growing: tuple[tuple[float, int | None], ...] = field(repr=False)

    def bytes_at(self, length: int) -> float:
        """Of one sequence of this length, windows kept no longer than they are."""
        grown = sum(size * (length if window is None else min(length, window)) for size, window in self._growing)
        return grown + self.fixed_bytes


def cache_cost(model: Decoder, bytes_per_number: float = 2.0) -> CacheCost:
    """``2 * layers * kv heads * head size * bytes`` for plain attention; a latent, a window or a state for others.

    A quantised cache has its scales in ``bytes_per_number``: 4-bit numbers with a 16-bit scale and zero per 32 of them
    take 0.625 bytes each. States are kept in float32.
    """
    growing, fixed = [], 0
    for spec in model.cache_specs:
        if isinstance(spec, RecurrentState):
            fixed += 4 * sum(math.prod(shape) for shape in spec.shapes)
        else:
            window = spec.window if isinstance(spec, PagedKV) else None
            growing.append((spec.numbers_per_token * bytes_per_number, window))
    return CacheCost(sum(size for size, _ in growing), fixed, tuple(growing))


@dataclass(frozen=True)
class TokenFlops:
    """Floating-point operations to decode one token, a multiplication and an addition counted as two."""

    weights: int
    """Products with weights: two for each parameter that is multiplied with."""
    attention: int
    """Scores and weighted sums over what is kept."""
    recurrence: int
    """Updating and reading running states: about six for each number kept."""

    @property
    def total(self) -> int:
        return self.weights + self.attention + self.recurrence


def token_flops(model: Decoder, length: int) -> TokenFlops:
    """For the token after ``length - 1`` others."""
    attention = recurrence = 0
    for mixer, spec in zip(_remembering(model), model.cache_specs, strict=True):
        if isinstance(spec, PagedKV):
            looked_at = length if spec.window is None else min(length, spec.window)
            attention += 4 * looked_at * mixer.config.num_heads * spec.head_dim
        elif isinstance(spec, LatentKV):
            attention += 2 * length * mixer.config.num_heads * (spec.dim + spec.value_dim)
        else:
            recurrence += 6 * sum(math.prod(shape) for shape in spec.shapes)
    return TokenFlops(2 * count_parameters(model).multiplied, attention, recurrence)


def _remembering(model: Decoder) -> list[Any]:
    from wootz.models.run import Remembering

    return [module for module in model.modules() if isinstance(module, Remembering)]
