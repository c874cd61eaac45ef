"""Native sparse attention (NSA, arXiv 2502.11089): learn from the start where to look.

Three branches, each with its own keys and values, and a learned gate per token, head and branch that weighs them:

- *compressed*: blocks of keys are each squeezed into one, and attended to densely: the whole text, coarsely;
- *selected*: what the compressed branch found interesting is looked at token by token, the best few blocks per query.
  The heads of a group choose together, so that they read the same blocks;
- *window*: the last tokens, so that the other two need not learn what is near.

The choice itself has no gradient; it is trained through the compressed branch, whose attention makes it.

The cache of such a layer (three of them, one on blocks) is not what a `Context` keeps, so the layer is given whole
sequences: it trains and can be studied, and is not served.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wootz.models.attention.dense import attend, attention_weights
from wootz.models.linear import Linear


@dataclass(frozen=True, kw_only=True)
class NativeSparseConfig:
    """Block sizes are in tokens; the defaults are the paper's. J blocks may be selected, N are compressed."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    compressed_block: int = 32
    stride: int = 16
    """From one compressed block to the next; they may overlap."""
    selected_block: int = 64
    num_selected: int = 16
    num_initial: int = 1
    """So many blocks at the start of the text are always selected, among the ``num_selected``."""
    num_local: int = 2
    """And so many that end with the query's own."""
    window: int = 512

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) is not a multiple of num_kv_heads ({self.num_kv_heads})")
        if self.compressed_block % self.stride or self.selected_block % self.stride:
            raise ValueError(
                f"blocks of {self.compressed_block} and {self.selected_block} not in steps of {self.stride}"
            )
        if self.num_initial + self.num_local > self.num_selected:
            raise ValueError("more blocks are always selected than are selected")

    def build(self, hidden_size: int) -> NativeSparseAttention:
        return NativeSparseAttention(self, hidden_size)


class NativeSparseAttention(nn.Module):
    def __init__(self, config: NativeSparseConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.q = Linear(hidden_size, config.num_heads * config.head_dim)
        self.kv = Linear(hidden_size, 6 * config.num_kv_heads * config.head_dim)
        self.gates = Linear(hidden_size, 3 * config.num_heads, bias=True)
        self.compress_k = BlockCompressor(config.compressed_block, config.stride, config.head_dim)
        self.compress_v = BlockCompressor(config.compressed_block, config.stride, config.head_dim)
        self.output = Linear(config.num_heads * config.head_dim, hidden_size, into_residual=True)

    def forward(self, x_BTD: Tensor, rotate: Callable[[Tensor], Tensor] = lambda x_BHTd: x_BHTd) -> Tensor:
        """``rotate`` tells queries and keys where they stand; the compressed branch compares contents alone."""
        config, num_tokens = self.config, x_BTD.shape[1]
        scale = config.head_dim**-0.5
        q_BHTd = self.q(x_BTD).unflatten(-1, (config.num_heads, -1)).transpose(1, 2)
        kv = self.kv(x_BTD).unflatten(-1, (6, config.num_kv_heads, -1)).permute(2, 0, 3, 1, 4)
        coarse, importance_BKTJ = attend_compressed(
            q_BHTd, self.compress_k(kv[0]), self.compress_v(kv[1]), scale, config
        )
        q_BHTd, fine_k, near_k = rotate(q_BHTd), rotate(kv[2]), rotate(kv[4])
        fine = attend_selected(q_BHTd, fine_k, kv[3], select_blocks(importance_BKTJ, config), scale, config)
        near = attend(q_BHTd, near_k, kv[5], scale=scale, mask_QL=window_mask(num_tokens, config.window, x_BTD.device))
        gates_3BHT1 = self.gates(x_BTD).sigmoid().unflatten(-1, (3, -1, 1)).permute(2, 0, 3, 1, 4)
        out_BHTd = (gates_3BHT1 * torch.stack((coarse, fine, near))).sum(0)
        return self.output(out_BHTd.transpose(1, 2).flatten(2))


class BlockCompressor(nn.Module):
    """A block of keys (or values), each told its place in the block, to one: ``(…, L, d)`` to ``(…, N, d)``, with
    ``N = (L - block) // stride + 1`` whole blocks."""

    def __init__(self, block: int, stride: int, head_dim: int) -> None:
        super().__init__()
        self.block, self.stride = block, stride
        self.places = nn.Parameter(0.02 * torch.randn(block, head_dim))
        self.squeeze = nn.Sequential(
            nn.Linear(block * head_dim, 2 * head_dim), nn.GELU(), nn.Linear(2 * head_dim, head_dim)
        )

    def forward(self, x_Ld: Tensor) -> Tensor:
        if x_Ld.shape[-2] < self.block:
            return x_Ld[..., :0, :]
        blocks_Nld = x_Ld.unfold(-2, self.block, self.stride).mT + self.places
        return self.squeeze(blocks_Nld.flatten(-2))


def attend_compressed(
    q_HTd: Tensor, k_KNd: Tensor, v_KNe: Tensor, scale: float, config: NativeSparseConfig
) -> tuple[Tensor, Tensor]:
    """Attention over whole blocks that lie in the past, ``(…, H, T, e)``, and what each block that may be selected got
    of it, over all heads of a group: ``(…, K, T, J)``. A compressed block counts for a block to select by the strides
    they share (the paper's equation 9)."""
    num_tokens, kv_heads = q_HTd.shape[-2], k_KNd.shape[-3]
    starts_N = config.stride * torch.arange(k_KNd.shape[-2], device=q_HTd.device)
    tokens_T1 = torch.arange(num_tokens, device=q_HTd.device)[:, None]
    in_the_past_TN = starts_N + config.compressed_block <= tokens_T1 + 1
    weights_KGTN = attention_weights(q_HTd, k_KNd, scale=scale, mask_QL=in_the_past_TN).unflatten(-3, (kv_heads, -1))
    out_KGTe = weights_KGTN.to(v_KNe.dtype) @ v_KNe.unsqueeze(-3)
    selectable_J = config.selected_block * torch.arange(-(-num_tokens // config.selected_block), device=q_HTd.device)
    first_shared = torch.maximum(starts_N[:, None], selectable_J)
    last_shared = torch.minimum(starts_N[:, None] + config.compressed_block, selectable_J + config.selected_block)
    strides_shared_NJ = (last_shared - first_shared).clamp_min(0) // config.stride
    importance_KTJ = weights_KGTN.detach().sum(-3) @ strides_shared_NJ.to(weights_KGTN.dtype)
    return out_KGTe.flatten(-4, -3), importance_KTJ


def select_blocks(importance_KTJ: Tensor, config: NativeSparseConfig) -> Tensor:
    """The blocks that each query of a group looks at, as booleans ``(…, K, T, J)``, at most ``num_selected``: the first
    ones, those up to its own, and the most important of the others that have begun."""
    num_tokens, num_blocks = importance_KTJ.shape[-2:]
    own_T1 = torch.arange(num_tokens, device=importance_KTJ.device)[:, None] // config.selected_block
    blocks_J = torch.arange(num_blocks, device=importance_KTJ.device)
    begun_TJ = blocks_J <= own_T1
    always_TJ = begun_TJ & ((blocks_J < config.num_initial) | (blocks_J > own_T1 - config.num_local))
    ranked = importance_KTJ.masked_fill(always_TJ, torch.inf).masked_fill(~begun_TJ, -torch.inf)
    best = ranked.topk(min(config.num_selected, num_blocks), dim=-1).indices
    return torch.zeros_like(importance_KTJ, dtype=torch.bool).scatter(-1, best, True) & begun_TJ


def attend_selected(
    q_HTd: Tensor, k_KTd: Tensor, v_KTe: Tensor, selected_KTJ: Tensor, scale: float, config: NativeSparseConfig
) -> Tensor:
    """Causal attention over the selected blocks' tokens, which alone are read: ``(…, H, T, e)``."""
    num_tokens, block, kv_heads = q_HTd.shape[-2], config.selected_block, k_KTd.shape[-3]
    most = min(config.num_selected, selected_KTJ.shape[-1])
    # Selected blocks first, in order of their place; what is left over of `most` is hidden by the mask.
    chosen_KTn = selected_KTJ.to(torch.int8).argsort(dim=-1, descending=True, stable=True)[..., :most]
    tokens_KTnb = chosen_KTn.unsqueeze(-1) * block + torch.arange(block, device=q_HTd.device)
    seen_KTnb = selected_KTJ.gather(-1, chosen_KTn).unsqueeze(-1) & (
        tokens_KTnb <= torch.arange(num_tokens, device=q_HTd.device)[:, None, None]
    )

    def read(x_KTd: Tensor) -> Tensor:
        """Each query's own keys, as if it were a sequence by itself: ``(…, K, T, 1, n · block, d)``."""
        places = tokens_KTnb.flatten(-3).clamp_max(num_tokens - 1).unsqueeze(-1)
        return x_KTd.gather(-2, places.expand(*places.shape[:-1], x_KTd.shape[-1])).unflatten(-2, (num_tokens, 1, -1))

    q_KTG1d = q_HTd.unflatten(-3, (kv_heads, -1)).transpose(-3, -2).unsqueeze(-2)
    out_KTG1e = attend(
        q_KTG1d, read(k_KTd), read(v_KTe), scale=scale, mask_QL=seen_KTnb.flatten(-2)[..., None, None, :]
    )
    return out_KTG1e.squeeze(-2).transpose(-3, -2).flatten(-4, -3)


def window_mask(num_tokens: int, window: int, device: torch.device | None = None) -> Tensor:
    """Booleans ``(T, T)``: each token sees the last ``window``, itself included."""
    tokens = torch.arange(num_tokens, device=device)
    distance = tokens[:, None] - tokens
    return (distance >= 0) & (distance < window)
