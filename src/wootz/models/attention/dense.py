"""Scaled dot-product attention: every query looks at every key it may (arXiv 1706.03762).

`attend` is what the rest of the house calls. It lets PyTorch's fused kernels do the work and never holds a matrix of Q
times L scores, unless scores are asked to be what those kernels cannot: capped, or biased by something that is being
learned. `attend_eager` is the formula, written out; it takes those cases and is the oracle for all the others.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(
    q_HQd: Tensor,
    k_KLd: Tensor,
    v_KLe: Tensor,
    *,
    scale: float,
    mask_QL: Tensor | None = None,
    is_causal: bool = False,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
    bias_HQL: Tensor | None = None,
) -> Tensor:
    """``softmax(scale * q·k) v`` for each head: ``(…, H, Q, e)``. Batch dimensions in front are the same for q, k, v.

    - H is a multiple of K; query head h reads key/value head ``h // (H // K)``, which is never stored repeated.
    - ``mask_QL`` is boolean, True where a query may look, and broadcasts to ``(…, H, Q, L)``. A query that may look at
      nothing gets zeros.
    - ``is_causal`` takes the last query and the last key to be the same token, so it is right for a chunk that follows
      L - Q cached tokens. It may stand beside a mask; both then hold.
    - ``softcap`` bounds the scores: ``softcap * tanh(scores / softcap)`` (Gemma 2).
    - ``bias_HQL`` is added to the (capped) scores and broadcasts as the mask does (ALiBi, T5).
    - ``sinks_H`` are the logits of one more key per head, whose value is zero (gpt-oss).
    """
    learned_bias = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (bias_HQL, sinks_H))
    if softcap is not None or learned_bias:
        return attend_eager(
            q_HQd,
            k_KLd,
            v_KLe,
            scale=scale,
            mask_QL=mask_QL,
            is_causal=is_causal,
            softcap=softcap,
            sinks_H=sinks_H,
            bias_HQL=bias_HQL,
        )
    num_queries, num_keys = q_HQd.shape[-2], k_KLd.shape[-2]
    is_causal = is_causal and num_queries > 1  # the last token sees everything
    if is_causal and (num_queries != num_keys or any(x is not None for x in (mask_QL, bias_HQL, sinks_H))):
        mask_QL, is_causal = _and(mask_QL, causal_mask(num_queries, num_keys, q_HQd.device)), False
    if bias_HQL is None and sinks_H is None:
        return _fused(q_HQd, k_KLd, v_KLe, scale, mask_QL, is_causal)
    bias_HQL = q_HQd.new_zeros(()) if bias_HQL is None else bias_HQL.to(q_HQd.dtype)
    if mask_QL is not None:
        bias_HQL = torch.where(mask_QL, bias_HQL, -torch.inf)
    if sinks_H is not None:
        # The sink becomes one more key: all zeros, so that its score is the sink's logit, which the bias adds.
        bias_HQL = bias_HQL.expand(*bias_HQL.shape[:-3], len(sinks_H), num_queries, num_keys)
        column_HQ1 = sinks_H.to(q_HQd.dtype)[:, None, None].expand(*bias_HQL.shape[:-1], 1)
        bias_HQL = torch.cat((bias_HQL, column_HQ1), -1)
        k_KLd, v_KLe = F.pad(k_KLd, (0, 0, 0, 1)), F.pad(v_KLe, (0, 0, 0, 1))
    return _fused(q_HQd, k_KLd, v_KLe, scale, bias_HQL, is_causal=False)


def attend_eager(
    q_HQd: Tensor,
    k_KLd: Tensor,
    v_KLe: Tensor,
    *,
    scale: float,
    mask_QL: Tensor | None = None,
    is_causal: bool = False,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
    bias_HQL: Tensor | None = None,
) -> Tensor:
    """`attend`, by its formula: memory ``O(H Q L)``, softmax in float32 at least."""
    heads = q_HQd.shape[-3]
    weights_HQL = attention_weights(
        q_HQd,
        k_KLd,
        scale=scale,
        mask_QL=mask_QL,
        is_causal=is_causal,
        softcap=softcap,
        sinks_H=sinks_H,
        bias_HQL=bias_HQL,
    )
    return _per_kv_head(weights_HQL.to(v_KLe.dtype), v_KLe).reshape(*q_HQd.shape[:-3], heads, -1, v_KLe.shape[-1])


def attention_weights(
    q_HQd: Tensor,
    k_KLd: Tensor,
    *,
    scale: float,
    mask_QL: Tensor | None = None,
    is_causal: bool = False,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
    bias_HQL: Tensor | None = None,
) -> Tensor:
    """The softmax itself, ``(…, H, Q, L)`` in float32 at least: how much each query takes from each key. What a sink
    takes is missing from a row's sum; a row that may look at nothing is zeros."""
    scores_HQL = _per_kv_head(q_HQd * scale, k_KLd.transpose(-1, -2))
    scores_HQL = scores_HQL.reshape(*q_HQd.shape[:-1], k_KLd.shape[-2])
    scores_HQL = scores_HQL.to(torch.promote_types(scores_HQL.dtype, torch.float32))
    if softcap is not None:
        scores_HQL = softcap * torch.tanh(scores_HQL / softcap)
    if bias_HQL is not None:
        scores_HQL = scores_HQL + bias_HQL
    if is_causal:
        mask_QL = _and(mask_QL, causal_mask(q_HQd.shape[-2], k_KLd.shape[-2], q_HQd.device))
    if mask_QL is not None:
        scores_HQL = scores_HQL.masked_fill(~mask_QL, -torch.inf)
    normaliser_HQ1 = scores_HQL.logsumexp(-1, keepdim=True)
    if sinks_H is not None:
        normaliser_HQ1 = torch.logaddexp(normaliser_HQ1, sinks_H.to(scores_HQL.dtype)[:, None, None])
    # Where there is nothing to look at, both are minus infinity, and their difference is to be that too, not NaN.
    return torch.exp(scores_HQL - normaliser_HQ1.masked_fill(normaliser_HQ1 == -torch.inf, 0))


def causal_mask(num_queries: int, num_keys: int, device: torch.device | None = None) -> Tensor:
    """Boolean ``(Q, L)``, True where a query may look; the last query and the last key are the same token."""
    return torch.ones(num_queries, num_keys, dtype=torch.bool, device=device).tril(num_keys - num_queries)


def _per_kv_head(x_HQm: Tensor, y_KmN: Tensor) -> Tensor:
    """Matrix products in which the H // K heads of a group are more rows of the one matrix they share."""
    kv_heads = y_KmN.shape[-3]
    return x_HQm.unflatten(-3, (kv_heads, -1)).flatten(-3, -2) @ y_KmN


def _and(mask: Tensor | None, other: Tensor) -> Tensor:
    return other if mask is None else mask & other


def _fused(q_HQd: Tensor, k_KLd: Tensor, v_KLe: Tensor, scale: float, mask: Tensor | None, is_causal: bool) -> Tensor:
    """PyTorch's kernel, given what its fast paths ask for: one batch dimension, and keys as wide as values."""
    batch, value_dim = q_HQd.shape[:-3], v_KLe.shape[-1]
    dim = max(q_HQd.shape[-1], value_dim)
    q, k, v = (_wider(x, dim).reshape(-1, *x.shape[-3:-1], dim) for x in (q_HQd, k_KLd, v_KLe))
    if mask is not None and mask.dim() > 2:
        mask = mask.expand(*batch, *mask.shape[-3:]).reshape(-1, *mask.shape[-3:]) if mask.dim() > 3 else mask[None]
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=is_causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out[..., :value_dim].reshape(*batch, *out.shape[-3:-1], value_dim)


def _wider(x: Tensor, dim: int) -> Tensor:
    return x if x.shape[-1] == dim else F.pad(x, (0, dim - x.shape[-1]))
