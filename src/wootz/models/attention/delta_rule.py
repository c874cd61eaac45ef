"""The generalised delta rule (RWKV-7, arXiv 2503.14456): a memory that corrects itself.

Linear attention adds every value to its sum for good. Here a token can first take back what the memory would answer to
some key, and so replace it:

    S_t = S_(t-1) diag(w_t) + (S_(t-1) a_tᵀ) b_t + v_tᵀ k_t        y_t = S_t r_tᵀ

With ``a = -κ`` and ``b = κ ⊙ rate`` for a key κ of length one that is: forget a fraction of what is stored under κ. The
state S, (e, d) in the paper, is kept transposed, as in `wootz.models.attention.linear`.

*Chunked.* What a token takes back, ``u_t = S_(t-1) a_tᵀ``, is one more value that is written, under key b_t. It depends
on the tokens before it in the chunk, linearly: one triangular system gives all u of a chunk, and the rest is linear
attention with two writes per token. Chunks of one token are the recurrence.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wootz.models.context import State


def delta_rule(
    state: State,
    r_BTHd: Tensor,
    log_w_BTHd: Tensor,
    k_BTHd: Tensor,
    v_BTHe: Tensor,
    a_BTHd: Tensor,
    b_BTHd: Tensor,
    *,
    chunk: int = 32,
) -> tuple[Tensor, State]:
    """``(y (B, T, H, e), (S (B, H, d, e),))``, in the state's dtype.

    Keys are divided by how far the state has faded since the chunk's start. So ``chunk * min(log_w)`` has to stay above
    -80 in float32; RWKV-7's decay is at least ``exp(-0.607)``, and its chunks might be four times as long.
    """
    (sum_BHde,) = state
    inputs = (x.transpose(1, 2).to(sum_BHde.dtype) for x in (r_BTHd, log_w_BTHd, k_BTHd, v_BTHe, a_BTHd, b_BTHd))
    outputs = []
    for r, log_w, k, v, a, b in zip(*(x.split(chunk, dim=2) for x in inputs), strict=True):
        faded = log_w.cumsum(2)
        r = r * faded.exp()
        a = a * (faded - log_w).exp()  # it reads before the token's own decay
        k, b = k * (-faded).exp(), b * (-faded).exp()
        u = _solve((a @ b.mT).tril(-1), a @ sum_BHde + (a @ k.mT).tril(-1) @ v)
        outputs.append(r @ sum_BHde + (r @ b.mT).tril() @ u + (r @ k.mT).tril() @ v)
        sum_BHde = faded[:, :, -1:].exp().mT * (sum_BHde + b.mT @ u + k.mT @ v)
    return torch.cat(outputs, dim=2).transpose(1, 2), (sum_BHde,)


def _solve(lower_BHCC: Tensor, right_BHCe: Tensor) -> Tensor:
    """u with ``u = lower u + right``, for a strictly lower triangular matrix."""
    identity = torch.eye(lower_BHCC.shape[-1], dtype=lower_BHCC.dtype, device=lower_BHCC.device)
    return torch.linalg.solve_triangular(identity - lower_BHCC, right_BHCe, upper=False, unitriangular=True)
