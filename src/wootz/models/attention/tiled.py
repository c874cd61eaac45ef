"""Exact attention, tile by tile: FlashAttention's algorithm (arXiv 2205.14135, 2307.08691), in plain PyTorch.

A tile of queries visits the tiles of keys one after the other, and a running softmax (`online_softmax`) sums up what it
has seen. No tile of scores outlives its turn, so memory is O(n), not O(n²). The backward pass computes scores anew from
q, k and one stored number per query, the log of its normaliser.

This is the algorithm to read, and to count with: `hbm_bytes` is its traffic with an accelerator's memory. For speed use
`dense.attend`, whose kernels are this algorithm, fused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from wootz.models.attention.online_softmax import PartialSoftmax


def attend_tiled(
    q_HQd: Tensor, k_KLd: Tensor, v_KLe: Tensor, *, scale: float, is_causal: bool = False, tile: int = 128
) -> tuple[Tensor, Tensor]:
    """`dense.attend`'s output ``(…, H, Q, e)``, and the log of the softmax's normaliser ``(…, H, Q)``.

    Both may be differentiated. Under ``is_causal`` the last query and the last key are the same token.
    """
    heads, kv_heads = q_HQd.shape[-3], k_KLd.shape[-3]
    # A pair of batch and key/value head is N; the G query heads that share it lie side by side.
    q_NGQd = q_HQd.unflatten(-3, (kv_heads, heads // kv_heads)).flatten(0, -4)
    out_NGQe, lse_NGQ = _Tiled.apply(q_NGQd, k_KLd.flatten(0, -3), v_KLe.flatten(0, -3), scale, is_causal, tile)
    return out_NGQe.reshape(*q_HQd.shape[:-1], -1), lse_NGQ.reshape(q_HQd.shape[:-1])


def visible_tiles(num_queries: int, num_keys: int, is_causal: bool, tile: int) -> Iterator[tuple[slice, list[slice]]]:
    """Each tile of queries, with the tiles of keys that it must visit. What lies in the future of all its queries is
    never touched: under a causal mask that is nearly half."""
    for start in range(0, num_queries, tile):
        queries = slice(start, min(start + tile, num_queries))
        seen = min(num_keys, num_keys - num_queries + queries.stop) if is_causal else num_keys
        yield queries, [slice(key, min(key + tile, num_keys)) for key in range(0, seen, tile)]


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_NGQd: Tensor, k_NLd: Tensor, v_NLe: Tensor, scale: float, is_causal: bool, tile: int):
        exact = torch.promote_types(q_NGQd.dtype, torch.float32)
        out_NGQe = q_NGQd.new_empty(*q_NGQd.shape[:-1], v_NLe.shape[-1])
        lse_NGQ = q_NGQd.new_empty(q_NGQd.shape[:-1], dtype=exact)
        for queries, key_tiles in visible_tiles(q_NGQd.shape[-2], k_NLd.shape[-2], is_causal, tile):
            q_NGqd = q_NGQd[:, :, queries].to(exact) * scale
            softmax = PartialSoftmax.empty(q_NGqd.shape[:-1], v_NLe.shape[-1], q_NGqd)
            for keys in key_tiles:
                scores_NGql = _scores(q_NGqd, k_NLd, queries, keys, q_NGQd.shape[-2], is_causal)
                softmax = softmax.merge(PartialSoftmax.of(scores_NGql, v_NLe[:, None, keys].to(exact)))
            out_NGQe[:, :, queries] = softmax.output.to(out_NGQe.dtype)
            lse_NGQ[:, :, queries] = softmax.logsumexp
        ctx.save_for_backward(q_NGQd, k_NLd, v_NLe, out_NGQe, lse_NGQ)
        ctx.scale, ctx.is_causal, ctx.tile = scale, is_causal, tile
        return out_NGQe, lse_NGQ

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any):
        grad_out_NGQe, grad_lse_NGQ = grad_outputs
        q_NGQd, k_NLd, v_NLe, out_NGQe, lse_NGQ = ctx.saved_tensors
        exact, num_queries = lse_NGQ.dtype, q_NGQd.shape[-2]
        dq_NGQd, dk_NLd, dv_NLe = (torch.zeros_like(x, dtype=exact) for x in (q_NGQd, k_NLd, v_NLe))
        # With P = exp(S - lse): dS = P (dO·v - dO·O + dlse). The last two need no key, so they are summed up once.
        known_NGQ1 = (grad_lse_NGQ - (grad_out_NGQe.to(exact) * out_NGQe).sum(-1)).unsqueeze(-1)
        finite_lse_NGQ1 = lse_NGQ.masked_fill(lse_NGQ == -torch.inf, 0).unsqueeze(-1)
        for queries, key_tiles in visible_tiles(num_queries, k_NLd.shape[-2], ctx.is_causal, ctx.tile):
            q_NGqd, grad_NGqe = q_NGQd[:, :, queries].to(exact) * ctx.scale, grad_out_NGQe[:, :, queries].to(exact)
            for keys in key_tiles:
                k_Nld, v_Nle = k_NLd[:, keys].to(exact), v_NLe[:, keys].to(exact)
                scores_NGql = _scores(q_NGqd, k_NLd, queries, keys, num_queries, ctx.is_causal)
                weights_NGql = torch.exp(scores_NGql - finite_lse_NGQ1[:, :, queries])
                dscores_NGql = weights_NGql * (grad_NGqe @ v_Nle[:, None].mT + known_NGQ1[:, :, queries])
                dv_NLe[:, keys] += torch.einsum("ngql,ngqe->nle", weights_NGql, grad_NGqe)
                dk_NLd[:, keys] += torch.einsum("ngql,ngqd->nld", dscores_NGql, q_NGqd)
                dq_NGQd[:, :, queries] += ctx.scale * (dscores_NGql @ k_Nld[:, None])
        return dq_NGQd.to(q_NGQd.dtype), dk_NLd.to(k_NLd.dtype), dv_NLe.to(v_NLe.dtype), None, None, None


def _scores(q_NGqd: Tensor, k_NLd: Tensor, queries: slice, keys: slice, num_queries: int, is_causal: bool) -> Tensor:
    """One tile of scores; only a tile on the diagonal has anything to hide."""
    scores_NGql = q_NGqd @ k_NLd[:, None, keys].to(q_NGqd.dtype).mT
    cached = k_NLd.shape[-2] - num_queries
    if not is_causal or keys.stop <= queries.start + cached + 1:
        return scores_NGql
    places_q1 = torch.arange(queries.start + cached, queries.stop + cached, device=k_NLd.device)[:, None]
    places_l = torch.arange(keys.start, keys.stop, device=k_NLd.device)
    return scores_NGql.masked_fill(places_l > places_q1, -torch.inf)


def tile_for(sram_bytes: int, head_dim: int, bytes_per_number: int = 2) -> int:
    """The longest tile of which a q, a k, a v and an output fit into fast memory of this size."""
    return sram_bytes // (4 * head_dim * bytes_per_number)


def hbm_bytes(
    length: int, head_dim: int, *, tile: int | None, is_causal: bool = False, bytes_per_number: int = 2
) -> int:
    """Bytes that one head's forward pass over ``length`` tokens moves between an accelerator's memory and its cores.

    With ``tile=None``, the textbook's three kernels: scores are written, read and written by the softmax, and read
    again, 4 n² numbers. Tiled, a tile of queries is read once and all keys and values that it sees go by:
    ``n²/tile · 2d`` numbers, which is O(n² d² / SRAM) with the tile that fits. Extra *memory* is O(n); traffic is not.
    """
    inputs_and_output = 4 * length * head_dim
    if tile is None:
        return bytes_per_number * (inputs_and_output + 4 * length * length)
    keys_read = sum(
        keys.stop - keys.start for _, key_tiles in visible_tiles(length, length, is_causal, tile) for keys in key_tiles
    )
    return bytes_per_number * (2 * length * head_dim + 2 * keys_read * head_dim) + 4 * length
