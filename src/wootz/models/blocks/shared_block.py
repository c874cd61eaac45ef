"""One transformer block that several depths share, in front of a Mamba-2 each (Zamba 2, arXiv 2411.15242).

    x + mamba(norm(x + linear(block([x, embeddings]))))

The block costs its weights once, however often it is used. Each depth adds low-rank adapters of its own, and of course
has keys and values of its own: its `Attention` is an object of its own, whose projections belong to all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wootz.models.blocks.attention import Attention, AttentionConfig
from wootz.models.blocks.mamba2 import Mamba2Config
from wootz.models.blocks.mlp import GatedMLP, GatedMLPConfig
from wootz.models.blocks.norms import NormConfig
from wootz.models.blocks.sizes import check_sizes
from wootz.models.linear import Linear
from wootz.models.run import Run


@dataclass(frozen=True, kw_only=True)
class SharedBlockConfig:
    """Builds a `SharedBlock` that shares nothing yet; see `share`."""

    attention: AttentionConfig
    ffn: GatedMLPConfig
    mamba: Mamba2Config
    norm: NormConfig
    adapter_rank: int
    attention_adapters: bool = False

    def __post_init__(self) -> None:
        check_sizes(self, "adapter_rank")

    def build(self, hidden_size: int) -> nn.Module:
        return SharedBlock(self, hidden_size)


class SharedBlock(nn.Module):
    """One depth."""

    def __init__(self, config: SharedBlockConfig, hidden_size: int) -> None:
        super().__init__()
        self.shared = SharedWeights(config, hidden_size)
        self.attention = Attention(config.attention, 2 * hidden_size)
        self.ffn = GatedMLP(config.ffn, hidden_size)
        self.linear = Linear(hidden_size, hidden_size)
        self.mamba_norm = config.norm.build(hidden_size)
        self.mamba = config.mamba.build(hidden_size)

    def forward(self, x_TD: Tensor, run: Run) -> Tensor:
        both_T2D = torch.cat((x_TD, run.shared["embeddings"]), dim=-1)
        y_TD = self.attention(self.shared.block_norm(both_T2D), run)
        y_TD = self.linear(self.ffn(self.shared.ffn_norm(y_TD), run))
        return self.mamba(self.mamba_norm(x_TD + y_TD), run)

    def use(self, shared: SharedWeights, depth: int) -> None:
        """From now on this depth's block is made of these weights, and of adapters for this depth."""
        self.shared = shared
        shared.add_adapters(depth)
        self.attention.add_module("qkv", AtDepth(shared.qkv, depth))
        self.attention.add_module("output", shared.output)
        self.ffn.add_module("gate_up", AtDepth(shared.gate_up, depth))
        self.ffn.add_module("down", shared.down)


def share(blocks: list[SharedBlock], num_owners: int) -> None:
    """Let the blocks take turns with the weights of the first ``num_owners``."""
    for depth, block in enumerate(blocks):
        block.use(blocks[depth % num_owners].shared, depth)


class SharedWeights(nn.Module):
    """What is there once."""

    def __init__(self, config: SharedBlockConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        attention, width, bias = config.attention, config.ffn.intermediate_size, config.ffn.bias
        queries, keys = attention.num_heads * attention.head_dim, attention.num_kv_heads * attention.head_dim
        self.block_norm = config.norm.build(2 * hidden_size)
        self.qkv = SharedProjection(Linear(2 * hidden_size, (queries, keys, keys)))
        self.output = Linear(queries, hidden_size)
        self.ffn_norm = config.norm.build(hidden_size)
        self.gate_up = SharedProjection(Linear(hidden_size, (width, width), bias=bias))
        self.down = Linear(width, hidden_size, bias=bias)

    def add_adapters(self, depth: int) -> None:
        rank, gate_up = self.config.adapter_rank, self.gate_up.linear
        if self.config.attention_adapters:
            self.qkv.adapters[str(depth)] = Adapter(self.qkv.linear.in_features, rank, self.qkv.linear.parts)
        self.gate_up.adapters[str(depth)] = Adapter(gate_up.in_features, rank, (gate_up.out_features,))


class SharedProjection(nn.Module):
    """A projection, and what each depth adds to it."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.linear, self.adapters = linear, nn.ModuleDict()

    def forward(self, x_TD: Tensor, depth: int) -> Tensor:
        y = self.linear(x_TD)
        return y + self.adapters[str(depth)](x_TD) if self.adapters else y


class AtDepth(nn.Module):
    """A shared projection as one depth sees it."""

    def __init__(self, projection: SharedProjection, depth: int) -> None:
        super().__init__()
        self.projection, self.depth = projection, depth

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.projection(x_TD, self.depth)


class Adapter(nn.Module):
    """``up(down(x))``, a pair of low-rank matrices for each part of a projection."""

    def __init__(self, in_features: int, rank: int, parts: tuple[int, ...]) -> None:
        super().__init__()
        self.down = Linear(in_features, (rank,) * len(parts))
        self.up = nn.ModuleList(Linear(rank, part) for part in parts)

    def forward(self, x_TD: Tensor) -> Tensor:
        inner = self.down(x_TD).chunk(len(self.up), dim=-1)
        return torch.cat([up(x_TR) for up, x_TR in zip(self.up, inner, strict=True)], dim=-1)
