"""What the ranks of a layout say to each other in one step, by formula: the counterpart of `CountedTraffic`.

For a decoder of attention and gated MLPs, or experts, and one batch of ``rows x length`` tokens for each reader. With T
tokens on a rank, width D, n ranks of an axis, per step:

- shard: every layer's parameters are gathered for the forward and again for the backward pass, those of the root once;
  gradients are scattered by sums, once. A gather or a scatter sends ``(n - 1) / n`` of the whole.
- shard with zero = 1: gradients are summed everywhere, ``2 (n - 1) / n`` of the whole, and what ranks have moved is
  gathered, ``(n - 1) / n``.
- replicate: what is left of the gradients after that is summed over copies.
- tensor: four gathers and four scatters of ``T D`` in each layer, half of them backward; one each for the embedding,
  one for the last norm, one sum for the head's input gradient, one gather of logits; the norms' own gradients.
- context: keys and values gathered, their gradients scattered, in each layer.
- expert: each token's k copies there and back, and both again backward, ``(n - 1) / n`` of them if routing is even.
- pipeline: hidden states to the next stage, their gradients to the one before, for each micro-batch.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import Any

from torch import nn

from wootz.models.blocks.attention import Attention
from wootz.models.blocks.experts import Experts
from wootz.models.blocks.moe import MoE
from wootz.models.decoder import Decoder, Layer
from wootz.models.expert_parallel import all_to_all_volume
from wootz.models.parallel.pipeline import stage_layers
from wootz.training.parallel.counting import Traffic
from wootz.training.parallel.layout import Layout


def step_traffic(
    model: Decoder,
    layout: Layout,
    *,
    rows: int,
    length: int,
    stage: int = 0,
    compute_bytes: int = 4,
    gradient_bytes: int = 4,
) -> dict[tuple[str, str], Traffic]:
    """Bytes that one rank of a stage sends, by (axis, kind). ``model`` is the whole model, on the meta device, say;
    every token of the batch has a label."""
    return _Step(model, layout, rows, length, stage, compute_bytes, gradient_bytes).count()


class _Step:
    def __init__(
        self, model: Decoder, layout: Layout, rows: int, length: int, stage: int, compute: int, gradient: int
    ) -> None:
        self.model, self.layout, self.compute, self.gradient = model, layout, compute, gradient
        self.width = model.config.hidden_size
        self.tokens = rows * length // layout.context
        """On one rank, before tensor parallelism."""
        self.micro = (layout.micro_batches or rows) if layout.pipeline > 1 else 1
        shares = stage_layers(len(model.layers), layout.pipeline)
        total = len(model.layers)
        own = range(total - shares[-1 - stage].stop, total - shares[-1 - stage].start)
        self.layers = [layer for number in own if isinstance(layer := model.layers[number], Layer)]
        self.is_first, self.is_last = stage == 0, stage == layout.pipeline - 1
        self.found: dict[tuple[str, str], Traffic] = defaultdict(Traffic)

    def count(self) -> dict[tuple[str, str], Traffic]:
        self._sharding()
        if self.layout.tensor > 1:
            self._tensor()
        if self.layout.context > 1:
            self._context()
        if self.layout.expert > 1:
            self._experts()
        if self.layout.pipeline > 1:
            self._pipeline()
        if self.layout.num_readers * self.layout.context > 1:
            self._add("loss", "all_reduce", 1, 2 * _others(self.layout.num_readers * self.layout.context) * 8)
        return dict(self.found)

    def _add(self, axis: str, kind: str, calls: int, size: float) -> None:
        """``size`` is sent by each of the calls."""
        if calls:
            entry = self.found[axis, kind]
            entry.calls += calls
            entry.bytes += calls * size

    # --- parameters -------------------------------------------------------------------------------------------

    def _sharding(self) -> None:
        layout = self.layout
        root: list[nn.Module] = [self.model.embedding] if self.is_first else []
        if self.is_last:
            root += [module for module in (self.model.norm, self.model.head) if module is not None]
        if layout.zero == 1:
            self._replicated()
            return
        reshard = layout.zero == 3 and layout.pipeline == 1
        for layer in self.layers:
            experts = _experts_of(layer) if layout.expert > 1 else None
            dense = self._numbers([layer], but=experts)
            self._gathered("shard", layout.shard * layout.context, dense, twice=reshard)
            if experts is not None:
                ranks = layout.shard // layout.expert * layout.context
                each = sum(_padded(p.shape[0] // layout.expert, ranks) * p[0].numel() for p in experts.parameters())
                self._gathered("expert_shard", ranks, each, twice=reshard)
        self._gathered("shard", layout.shard * layout.context, self._numbers(root), twice=False)

    def _replicated(self) -> None:
        """Gradients are summed in buckets of 1 MiB first and then 25 MiB, as PyTorch fills them."""
        ranks, parameters = self.layout.shard, self._numbers([self.model])
        gradients = sum(p.numel() for p in self.model.parameters()) * self.gradient
        if ranks > 1:
            calls = 1 + math.ceil(max(0, gradients - 2**20) / (25 * 2**20))
            self._add("shard", "all_reduce", calls, 2 * _others(ranks) * gradients / calls)
            self._add("shard", "all_gather", 1, _others(ranks) * parameters * 4)

    def _gathered(self, axis: str, ranks: int, numbers: int, *, twice: bool) -> None:
        if ranks > 1:
            self._add(axis, "all_gather", 1 + twice, _others(ranks) * numbers * self.compute)
            self._add(axis, "reduce_scatter", 1, _others(ranks) * numbers * self.gradient)
        if self.layout.replicate > 1:
            copies = self.layout.replicate
            self._add("replicate", "all_reduce", 1, 2 * _others(copies) * numbers // ranks * self.gradient)

    def _numbers(self, modules: list[nn.Module], but: nn.Module | None = None) -> int:
        """Of the modules' parameters on one tensor rank, each padded to what divides among its shards."""
        ranks = self.layout.shard * self.layout.context
        left_out = set(but.parameters()) if but is not None else set()
        seen: set[int] = set()
        numbers = 0
        for module in modules:
            for path, owner in module.named_modules():
                for name, parameter in owner.named_parameters(recurse=False):
                    if parameter in left_out or id(parameter) in seen:
                        continue
                    seen.add(id(parameter))
                    for shape in _pieces(path, name, owner, tuple(parameter.shape), self.layout.tensor):
                        numbers += _padded(shape[0], ranks) * math.prod(shape[1:])
        return numbers

    # --- activations ------------------------------------------------------------------------------------------

    def _tensor(self) -> None:
        n, micro, model = self.layout.tensor, self.micro, self.model
        stream = _others(n) * self.tokens * self.width * self.compute / micro
        parts = 2 * len(self.layers)
        self._add("tensor", "all_gather", (2 * parts + self.is_first + self.is_last) * micro, stream)
        self._add("tensor", "reduce_scatter", (2 * parts + self.is_first) * micro, stream)
        norms: Counter[int] = Counter()
        for layer in self.layers:
            norms[self.width] += sum("norm" in name for name, _ in layer.named_children() if name.endswith("norm"))
            if isinstance(layer.mixer, Attention) and layer.mixer.q_norm is not None:
                norms[layer.mixer.config.head_dim] += 2
        if self.is_last:
            norms[self.width] += 1
            logits = _others(n) * self.tokens * model.config.vocab_size * self.compute / micro
            self._add("tensor", "all_gather", micro, logits)
            self._add("tensor", "all_reduce", micro, 2 * stream)
        for size, number in norms.items():
            self._add("tensor", "all_reduce", number, 2 * _others(n) * size * self.compute)

    def _context(self) -> None:
        n = self.layout.context
        for layer in self.layers:
            if isinstance(layer.mixer, Attention):
                config = layer.mixer.config
                kept = 2 * config.num_kv_heads * config.head_dim / self.layout.tensor
                sent = (n - 1) * self.tokens * kept * self.compute / self.micro
                self._add("context", "all_gather", self.micro, sent)
                self._add("context", "reduce_scatter", self.micro, sent)

    def _experts(self) -> None:
        n = self.layout.expert
        for layer in self.layers:
            if isinstance(layer.ffn, MoE):
                router = layer.ffn.config.router
                way = all_to_all_volume(
                    router,
                    self.width,
                    tokens_per_rank=self.tokens // self.micro,
                    num_ranks=n,
                    bytes_per_number=self.compute,
                ).dispatch
                self._add("expert", "all_to_all", 4 * self.micro, way)
                self._add("expert", "all_to_all", self.micro, _others(n) * router.num_experts * 8)  # how many rows

    def _pipeline(self) -> None:
        ways = (not self.is_last) + (not self.is_first)
        own = self.tokens * self.width * self.compute / self.layout.tensor / self.micro
        self._add("pipeline", "send", ways * self.micro, own)


def _others(n: int) -> float:
    return (n - 1) / n


def _padded(rows: int, ranks: int) -> int:
    return -(-rows // ranks) * ranks


def _experts_of(layer: Layer) -> Experts | None:
    return layer.ffn.experts if isinstance(layer.ffn, MoE) and isinstance(layer.ffn.experts, Experts) else None


def _pieces(path: str, name: str, owner: Any, shape: tuple[int, ...], tensor: int) -> list[tuple[int, ...]]:
    """A parameter as it lies on one tensor rank: taken apart, then cut by rows or by columns."""
    last = path.rpartition(".")[2]
    parts = getattr(owner, "parts", None)
    rows = parts if last in ("qkv", "gate_up") and parts else (shape[0],)
    pieces = [(part, *shape[1:]) for part in rows]
    is_norm = "norm" in last or type(owner).__name__ in ("RMSNorm", "LayerNorm")
    if tensor == 1 or is_norm:
        return pieces
    if last in ("output", "down"):
        return [(first, rest[0] // tensor) if (rest := tuple(tail)) else (first,) for first, *tail in pieces]
    return [(first // tensor, *tail) for first, *tail in pieces]
