"""Attention without a softmax: a running sum in place of a growing cache.

If the similarity of a query and a key is a plain product of features, ``φ(q)·φ(k)``, then the sum over the past can be
kept as one matrix per head, whatever its length (arXiv 2006.16236):

    S_t = decay_t ⊙ S_(t-1) + k_tᵀ v_t        out_t = q_t S_t

Three ways to compute it give the same numbers. *Recurrent*: token by token, as when decoding. *Parallel*: scores of all
pairs, masked, as in attention. *Chunked*: parallel inside a chunk, recurrent between chunks, O(n d²) and made of matrix
products. `decayed_sum` is the chunked form; one chunk of all tokens makes it the parallel one, and chunks of one token
the recurrent one. The families differ in features and decay only:

- `linear_attention`: any feature map, no decay, and outputs divided by the sum of the weights;
- `retention` (RetNet, arXiv 2307.08621): one constant decay per head;
- `gated_linear_attention` (GLA, arXiv 2312.06635): a decay per key dimension, computed from the token.

What comes in is ``(B, T, H, …)``, and ``state`` holds ``(B, H, d, e)``: the shape of `Context.recur`'s ``advance``. The
state is in float32 at least, and so are the sums.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wootz.models.context import RecurrentState, State


def decayed_sum(
    state: State, q_BTHd: Tensor, k_BTHd: Tensor, v_BTHe: Tensor, log_decay_BTHd: Tensor | None, *, chunk: int = 64
) -> tuple[Tensor, State]:
    """``(out (B, T, H, e), (S (B, H, d, e),))``.

    ``log_decay`` is never positive; its last dimension is d, or 1 for a whole head, and None is no decay. A decay per
    dimension is computed pair by pair, ``O(chunk² d)`` memory: exact where the usual quotient of cumulative products
    overflows, so keep its chunks short.
    """
    (sum_BHde,) = state
    dtype, out_dtype = sum_BHde.dtype, v_BTHe.dtype
    inputs = [x_BTH.transpose(1, 2).to(dtype) for x_BTH in (q_BTHd, k_BTHd, v_BTHe)]
    if log_decay_BTHd is not None:
        inputs.append(log_decay_BTHd.transpose(1, 2).to(dtype))
    outputs = []
    for q, k, v, *log_decay in zip(*(x_BHT.split(chunk, dim=2) for x_BHT in inputs), strict=True):
        # Log of how far the state at the chunk's start has faded when token c has been taken in.
        faded = log_decay[0].cumsum(2) if log_decay else q.new_zeros(1, 1, q.shape[2], 1)
        outputs.append((q * faded.exp()) @ sum_BHde + _pairs(q, k, faded) @ v)
        last = faded[:, :, -1:]
        sum_BHde = last.exp().mT * sum_BHde + (k * (last - faded).exp()).mT @ v
    return torch.cat(outputs, dim=2).transpose(1, 2).to(out_dtype), (sum_BHde,)


def _pairs(q_BHCd: Tensor, k_BHCd: Tensor, faded_BHCd: Tensor) -> Tensor:
    """``Σ_d q_i k_j exp(faded_i - faded_j)`` for j ≤ i, and zero else: ``(B, H, C, C)``."""
    length = q_BHCd.shape[2]
    future_CC = torch.ones(length, length, dtype=torch.bool, device=q_BHCd.device).triu(1)
    # Hidden before the exponential, which could overflow there.
    fade_BHCCd = (faded_BHCd.unsqueeze(3) - faded_BHCd.unsqueeze(2)).masked_fill(future_CC[..., None], -torch.inf).exp()
    if fade_BHCCd.shape[-1] == 1:
        return (q_BHCd @ k_BHCd.mT) * fade_BHCCd.squeeze(-1)
    return torch.einsum("bhid,bhjd,bhijd->bhij", q_BHCd, k_BHCd, fade_BHCCd)


# --- linear attention ------------------------------------------------------------------------------------------------


def linear_attention_state(num_heads: int, num_features: int, value_dim: int) -> RecurrentState:
    """What `linear_attention` keeps: the sum of values, and beside it, in one more column, the sum of weights."""
    return RecurrentState(((num_heads, num_features, value_dim + 1),))


def linear_attention(
    state: State, features_q_BTHd: Tensor, features_k_BTHd: Tensor, v_BTHe: Tensor, *, chunk: int = 64
) -> tuple[Tensor, State]:
    """Attention with the weights ``φ(q)·φ(k)``, which must not be negative, divided by their sum."""
    ones_BTH1 = v_BTHe.new_ones(()).expand(*v_BTHe.shape[:-1], 1)
    both, state = decayed_sum(
        state,
        features_q_BTHd,
        features_k_BTHd,
        torch.cat((v_BTHe, ones_BTH1), -1).to(state[0].dtype),
        None,
        chunk=chunk,
    )
    values, weights = both[..., :-1], both[..., -1:]
    return (values / weights.clamp_min(torch.finfo(weights.dtype).tiny)).to(v_BTHe.dtype), state


def elu_plus_one(x: Tensor) -> Tensor:
    """The feature map of arXiv 2006.16236: never negative, and of the same width."""
    return F.elu(x) + 1


class FavorFeatures(nn.Module):
    """Performer's positive random features (FAVOR+, arXiv 2009.14794): ``E[φ(q)·φ(k)] = exp(q·k / √d)``, so that linear
    attention estimates softmax attention, the better the more features. Of historical interest.

    The directions are a function of the seed and belong to no checkpoint: who has the config has them.
    """

    def __init__(self, head_dim: int, num_features: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        with torch.device("cpu"):  # also where a model is built without memory, to be filled from a file
            blocks = []
            for _ in range(0, num_features, head_dim):
                q, r = torch.linalg.qr(torch.randn(head_dim, head_dim, generator=generator))
                blocks.append((q * r.diagonal().sign()).mT)  # without the signs, not all directions are equally likely
            # Orthogonal directions, of the lengths that independent ones would have had: the same mean, less variance.
            lengths_m1 = torch.randn(num_features, head_dim, generator=generator).norm(dim=-1, keepdim=True)
            self.register_buffer("projection_md", torch.cat(blocks)[:num_features] * lengths_m1, persistent=False)

    def forward(self, x: Tensor, *, up_to_scale: bool = False) -> Tensor:
        """``(…, d)`` to ``(…, m)``, in float32 at least. With ``up_to_scale``, each vector's features are divided by
        the largest of them, so that none of a long vector is rounded to nothing: for queries, whose scale
        `linear_attention` divides by anyway."""
        x = x.to(torch.promote_types(x.dtype, torch.float32)) * x.shape[-1] ** -0.25
        exponents = x @ self.projection_md.mT.to(x.dtype)
        if up_to_scale:
            return (exponents - exponents.amax(-1, keepdim=True)).exp()
        return (exponents - x.square().sum(-1, keepdim=True) / 2).exp() * len(self.projection_md) ** -0.5

    def _apply(self, fn, recurse=True):  # pyright: ignore[reportMissingParameterType]
        # The directions move with the model, but `to_empty` must not lose them.
        projection_md = self.projection_md
        super()._apply(fn, recurse)
        self.projection_md = projection_md.to(self.projection_md.device)
        return self


# --- retention and gated linear attention ----------------------------------------------------------------------------


def decayed_state(num_heads: int, head_dim: int, value_dim: int) -> RecurrentState:
    """What `retention` and `gated_linear_attention` keep."""
    return RecurrentState(((num_heads, head_dim, value_dim),))


def retention(
    state: State, q_BTHd: Tensor, k_BTHd: Tensor, v_BTHe: Tensor, *, log_decay_H: Tensor, chunk: int = 64
) -> tuple[Tensor, State]:
    """``out_i = Σ_(j ≤ i) γ^(i-j) (q_i·k_j) v_j``. Scaling, rotation and the norm behind it are the caller's."""
    log_decay_BTH1 = log_decay_H[:, None].expand(*q_BTHd.shape[:3], 1)
    return decayed_sum(state, q_BTHd, k_BTHd, v_BTHe, log_decay_BTH1, chunk=chunk)


def retention_log_decay(num_heads: int) -> Tensor:
    """RetNet's ``γ_h = 1 - 2^(-5-h)``: the first head forgets within some thirty tokens, each next one half as fast."""
    return torch.log1p(-(2.0 ** (-5 - torch.arange(num_heads, dtype=torch.float64)))).float()


def gated_linear_attention(
    state: State, q_BTHd: Tensor, k_BTHd: Tensor, v_BTHe: Tensor, gate_logits_BTHd: Tensor, *, chunk: int = 16
) -> tuple[Tensor, State]:
    """Each token says how much of every key dimension is kept: the decay is ``sigmoid(gate_logits) ** (1/16)``, which
    starts near one."""
    log_decay_BTHd = F.logsigmoid(gate_logits_BTHd.to(state[0].dtype)) / 16
    return decayed_sum(state, q_BTHd, k_BTHd, v_BTHe, log_decay_BTHd, chunk=chunk)
