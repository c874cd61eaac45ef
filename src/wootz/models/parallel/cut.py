"""Which part of each weight a rank holds: Megatron's cuts (arXiv 1909.08053), read off the types of a model's modules.

- Attention by head: rows of query, key and value, columns of the output. With fewer key/value heads than ranks, each
  of them is on several ranks, and so is its cache. Latent attention likewise; its one latent vector is on all ranks.
- Feed-forward by width: rows of gate and up, columns of down. Experts too, or whole experts with ``split_experts``.
- Embedding and head by vocabulary.
- Layers by stage of a pipeline; embedding and head are with the first stage, where tokens come from and go to.

A product of columns is a share of a sum, and its bias is in the first rank's share. What is cut leaves modules that
are smaller and otherwise what they were, so each computes its share by the same code. A part that cannot be cut by
these rules is refused; it is never computed on all ranks in silence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from wootz.core.errors import ConfigError
from wootz.models.blocks.attention import Attention
from wootz.models.blocks.experts import Experts
from wootz.models.blocks.latent_attention import LatentAttention
from wootz.models.blocks.mlp import MLP, GatedMLP
from wootz.models.blocks.moe import MoE
from wootz.models.cut import Cut
from wootz.models.decoder import Decoder, Layer
from wootz.models.linear import Linear
from wootz.models.parallel.pipeline import keep_stage
from wootz.models.positions.alibi import ALiBi
from wootz.models.positions.t5 import T5Buckets


@dataclass(frozen=True)
class Place:
    """Where a rank stands: which of ``tensor`` shares of which of ``pipeline`` stages. Ranks of a stage are
    neighbours."""

    rank: int = 0
    tensor: int = 1
    pipeline: int = 1
    split_experts: bool = False
    """Give each rank of a stage whole experts, rather than a part of each."""

    @property
    def tensor_rank(self) -> int:
        return self.rank % self.tensor

    @property
    def stage(self) -> int:
        return self.rank // self.tensor

    @property
    def num_ranks(self) -> int:
        return self.tensor * self.pipeline


def cut(model: Decoder, place: Place) -> dict[str, Cut]:
    """Leave ``model``, in place, what ``place`` holds of it; returns how each parameter that changed was cut.

    The model may be on the meta device or hold weights, which are then cut too. Raises `ConfigError` for a model that
    does not divide.
    """
    cuts: dict[str, Cut] = {}
    keep_stage(model, place.stage, place.pipeline)
    if place.tensor > 1:
        cutter = _Cutter(place, cuts)
        cutter.vocabulary(model)
        for number, layer in enumerate(model.layers):
            if isinstance(layer, Layer):
                cutter.layer(layer, f"layers.{number}")
        model.cache_specs = [module.cache_spec for module in model.modules() if isinstance(module, _CACHED)]
    return cuts


_CACHED = Attention | LatentAttention


class _Cutter:
    def __init__(self, place: Place, cuts: dict[str, Cut]) -> None:
        self.rank, self.size, self.split_experts, self.cuts = place.tensor_rank, place.tensor, place.split_experts, cuts

    # --- what is cut ------------------------------------------------------------------------------------------

    def vocabulary(self, model: Decoder) -> None:
        """By rows, the last rank's share being smaller where they do not divide. Only the first stage has any."""
        if not isinstance(model.head, Linear):
            return
        whole = model.config.vocab_size
        size = -(-whole // self.size)
        if (self.size - 1) * size >= whole:
            raise ConfigError(f"a vocabulary of {whole} does not divide among {self.size} ranks")
        rows = [(self.rank * size, min((self.rank + 1) * size, whole))]
        self._keep(model.embedding, "embedding", "weight", 0, rows)
        model.embedding.num_embeddings = len(model.embedding.weight)
        if model.config.tie_embeddings:
            self._keep(model.head, "head", "bias", 0, rows)
            model.head.parts = (len(model.embedding.weight),)
            model.head.out_features = model.head.parts[0]
            model.tie_weights()
        else:
            self._rows(model.head, "head", rows)

    def layer(self, layer: Layer, path: str) -> None:
        match layer.mixer:
            case Attention():
                self.attention(layer.mixer, f"{path}.mixer")
            case LatentAttention():
                self.latent_attention(layer.mixer, f"{path}.mixer")
            case None:
                pass
            case other:
                raise _refusal(other)
        self.feed_forward(layer.ffn, f"{path}.ffn")

    def attention(self, module: Attention, path: str) -> None:
        config = module.config
        heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
        if config.qk_norm is not None and config.qk_norm_over == "all":
            raise ConfigError("tensor parallelism cannot cut a norm over all heads at once (OLMo 2)")
        if config.rotary is not None and config.rotary.decay is not None:
            raise ConfigError("tensor parallelism cannot cut rotary positions that decay by head (xPos)")
        own_heads = self._share(heads, "attention heads")
        if kv_heads % self.size and self.size % kv_heads:
            raise ConfigError(f"{kv_heads} key/value heads do not divide among {self.size} ranks")
        first_kv, num_kv = self.rank * kv_heads // self.size, max(1, kv_heads // self.size)
        own_kv = (first_kv, first_kv + num_kv)
        if config.qkv_by_group:
            group = (heads // kv_heads + 2) * dim
            if kv_heads % self.size:
                raise ConfigError(f"{kv_heads} groups of heads do not divide among {self.size} ranks")
            self._rows(module.qkv, f"{path}.qkv", _scaled([own_kv], group))
            sizes = (own_heads[1] - own_heads[0], num_kv, num_kv)
            module.qkv.parts = tuple(size * dim for size in sizes)
        else:
            starts = (0, heads, heads + kv_heads)
            parts = (own_heads, own_kv, own_kv)
            rows = [(start + low, start + high) for start, (low, high) in zip(starts, parts, strict=True)]
            self._rows(module.qkv, f"{path}.qkv", _scaled(rows, dim))
        self._columns(module.output, f"{path}.output", _scaled([own_heads], dim))
        self._keep(module, path, "sinks_H", 0, [own_heads])
        self._score_bias(module.score_bias, f"{path}.score_bias", own_heads)
        module.config = replace(config, num_heads=own_heads[1] - own_heads[0], num_kv_heads=num_kv)
        module.cache_spec = replace(module.cache_spec, num_kv_heads=num_kv)

    def latent_attention(self, module: LatentAttention, path: str) -> None:
        config = module.config
        own = self._share(config.num_heads, "attention heads")
        last = "direct" if config.query_latent_dim is None else "up"
        self._rows(module.q.get_submodule(last), f"{path}.q.{last}", _scaled([own], config.query_dim))
        self._keep(module, path, "kv_up", 0, [own])
        self._columns(module.output, f"{path}.output", _scaled([own], config.value_dim))
        module.config = replace(config, num_heads=own[1] - own[0])

    def feed_forward(self, module: nn.Module | None, path: str) -> None:
        match module:
            case GatedMLP():
                width = module.down.in_features
                low, high = self._share(width, "feed-forward units")
                self._rows(module.gate_up, f"{path}.gate_up", [(low, high), (width + low, width + high)])
                self._columns(module.down, f"{path}.down", [(low, high)])
            case MLP():
                own = self._share(module.down.in_features, "feed-forward units")
                self._rows(module.up, f"{path}.up", [own])
                self._columns(module.down, f"{path}.down", [own])
            case MoE(experts=Experts() as experts):
                self._experts(experts, f"{path}.experts")
                if module.shared is not None and not self.split_experts:
                    self.feed_forward(module.shared, f"{path}.shared")
            case None:
                pass
            case other:
                raise _refusal(other)

    def _experts(self, experts: Experts, path: str) -> None:
        num_experts, _, width = experts.down.weight.shape
        if self.split_experts:
            own = [self._share(num_experts, "experts")]
            for name, projection in experts.named_children():
                self._keep(projection, f"{path}.{name}", "weight", 0, own)
                self._keep(projection, f"{path}.{name}", "bias", 0, own)
            return
        low, high = self._share(width, "feed-forward units of an expert")
        rows = [(2 * low, 2 * high)] if experts.interleaved else [(low, high), (width + low, width + high)]
        self._keep(experts.gate_up, f"{path}.gate_up", "weight", 1, rows)
        self._keep(experts.gate_up, f"{path}.gate_up", "bias", 1, rows)
        self._keep(experts.down, f"{path}.down", "weight", 2, [(low, high)])
        if self.rank:
            experts.down.bias = None

    def _score_bias(self, module: nn.Module | None, path: str, own_heads: tuple[int, int]) -> None:
        match module:
            case ALiBi():
                module.slopes_H11 = module.slopes_H11[slice(*own_heads)]
            case T5Buckets():
                self._keep(module.table, f"{path}.table", "weight", 1, [own_heads])
            case None:
                pass
            case other:
                raise _refusal(other)

    # --- how --------------------------------------------------------------------------------------------------

    def _share(self, number: int, what: str) -> tuple[int, int]:
        if number % self.size:
            raise ConfigError(f"{number} {what} do not divide among {self.size} ranks")
        each = number // self.size
        return self.rank * each, (self.rank + 1) * each

    def _rows(self, linear: nn.Module, path: str, ranges: list[tuple[int, int]]) -> None:
        assert isinstance(linear, Linear)
        for leaf in ("weight", "bias"):
            self._keep(linear, path, leaf, 0, ranges)
        linear.parts = tuple(end - start for start, end in ranges)
        linear.out_features = sum(linear.parts)

    def _columns(self, linear: Linear, path: str, ranges: list[tuple[int, int]]) -> None:
        self._keep(linear, path, "weight", 1, ranges)
        linear.in_features = linear.weight.shape[1]
        if self.rank:
            linear.bias = None

    def _keep(self, module: nn.Module, path: str, leaf: str, dim: int, ranges: Iterable[tuple[int, int]]) -> None:
        whole: Any = getattr(module, leaf)
        if whole is not None:
            kept = self.cuts[f"{path}.{leaf}"] = Cut(dim, tuple(ranges))
            setattr(module, leaf, nn.Parameter(kept.of(whole.detach()), requires_grad=whole.requires_grad))


def _scaled(ranges: list[tuple[int, int]], each: int) -> list[tuple[int, int]]:
    """Ranges of heads as ranges of their dimensions."""
    return [(start * each, end * each) for start, end in ranges]


def _refusal(part: nn.Module) -> ConfigError:
    return ConfigError(
        f"tensor parallelism cannot cut {type(part).__name__}", hint="use pipeline_parallel, or replicas"
    )
