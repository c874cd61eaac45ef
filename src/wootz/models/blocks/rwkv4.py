"""RWKV-4 (arXiv 2305.13048): attention in which weights fade with time and do not depend on a query.

    out_t = Σ_(s<t) exp(k_s - (t-1-s) w) v_s + exp(u + k_t) v_t,   divided by the sum of the weights

for each of A channels alone. As the weights are the same whoever asks, the past is one mean and its weight. Kept as the
logarithm of the weight, nothing can overflow, and a chunk of tokens is a softmax over what came before and the chunk
itself. A chunk of one token is the recurrence, a chunk of all the parallel form.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wootz.models.blocks.recurrent import Recurrent
from wootz.models.blocks.short_conv import TokenShift
from wootz.models.blocks.sizes import check_sizes
from wootz.models.context import State
from wootz.models.linear import Linear
from wootz.models.run import Run


@dataclass(frozen=True)
class RWKV4Config:
    """The time mixing: RWKV's place of attention."""

    attention_size: int
    chunk_size: int = 16

    def __post_init__(self) -> None:
        check_sizes(self, "attention_size", "chunk_size")

    def build(self, hidden_size: int) -> nn.Module:
        return TimeMix(self, hidden_size)


class TimeMix(Recurrent):
    def __init__(self, config: RWKV4Config, hidden_size: int) -> None:
        size = config.attention_size
        super().__init__((size,), (size,), initial=(0.0, float("-inf")))
        self.config = config
        self.shift = TokenShift(hidden_size)
        self.mix_key, self.mix_value, self.mix_receptance = (mix(hidden_size) for _ in range(3))
        self.key, self.value, self.receptance = (Linear(hidden_size, size) for _ in range(3))
        self.decay = nn.Parameter(torch.linspace(-5.0, 3.0, size))  # half-lives from a hundred tokens to none
        self.bonus = nn.Parameter(torch.full((size,), 0.3).log())
        self.out_proj = Linear(size, hidden_size, into_residual=True)

    def forward(self, x_TD: Tensor, run: Run) -> Tensor:
        before_TD = self.shift(x_TD, run)
        k_TA = self.key(torch.lerp(before_TD, x_TD, self.mix_key))
        v_TA = self.value(torch.lerp(before_TD, x_TD, self.mix_value))
        receptance_TA = self.receptance(torch.lerp(before_TD, x_TD, self.mix_receptance)).sigmoid()
        mean_TA = self.recur(run, k_TA, v_TA)
        return self.out_proj(receptance_TA * mean_TA)

    def advance(self, state: State, k_BTA: Tensor, v_BTA: Tensor) -> tuple[Tensor, State]:
        return weighted_mean(state, k_BTA, v_BTA, self.decay.exp(), self.bonus, chunk=self.config.chunk_size)


def weighted_mean(
    state: State, k_BTA: Tensor, v_BTA: Tensor, decay_A: Tensor, bonus_A: Tensor, *, chunk: int
) -> tuple[Tensor, State]:
    """``(out (B, T, A), (mean (B, A), log of its weight (B, A)))``. ``decay`` is not negative."""
    mean_BA, log_weight_BA = state
    dtype, out_dtype = mean_BA.dtype, v_BTA.dtype
    decay_A, bonus_A = decay_A.to(dtype), bonus_A.to(dtype)
    outputs = []
    for k_BCA, v_BCA in zip(k_BTA.to(dtype).split(chunk, 1), v_BTA.to(dtype).split(chunk, 1), strict=True):
        length = k_BCA.shape[1]
        # One row more than there are tokens: what the next chunk's first token will see, which is the state.
        rows_R1 = torch.arange(length + 1, device=k_BCA.device)[:, None]
        age_RC = rows_R1 - 1 - rows_R1[:-1, 0]
        bias_RCA = torch.where((age_RC == -1)[..., None], bonus_A, -decay_A * age_RC[..., None])
        bias_RCA = bias_RCA.masked_fill((age_RC < -1)[..., None], -torch.inf)
        past_BR1A = (log_weight_BA[:, None] - decay_A * rows_R1)[:, :, None]
        logits_BRLA = torch.cat((past_BR1A, k_BCA[:, None] + bias_RCA), dim=2)
        values_BLA = torch.cat((mean_BA[:, None], v_BCA), dim=1)
        means_BRA = torch.einsum("brla,bla->bra", F.softmax(logits_BRLA, dim=2), values_BLA)
        outputs.append(means_BRA[:, :-1])
        mean_BA, log_weight_BA = means_BRA[:, -1], logits_BRLA[:, -1].logsumexp(1)
    return torch.cat(outputs, dim=1).to(out_dtype), (mean_BA, log_weight_BA)


@dataclass(frozen=True)
class RWKV4ChannelMixConfig:
    """The channel mixing: RWKV's feed-forward part, which sees one token back."""

    intermediate_size: int

    def __post_init__(self) -> None:
        check_sizes(self, "intermediate_size")

    def build(self, hidden_size: int) -> nn.Module:
        return ChannelMix(self, hidden_size)


class ChannelMix(nn.Module):
    def __init__(self, config: RWKV4ChannelMixConfig, hidden_size: int) -> None:
        super().__init__()
        self.shift = TokenShift(hidden_size)
        self.mix_key, self.mix_receptance = mix(hidden_size), mix(hidden_size)
        self.key = Linear(hidden_size, config.intermediate_size)
        self.receptance = Linear(hidden_size, hidden_size)
        self.value = Linear(config.intermediate_size, hidden_size, into_residual=True)

    def forward(self, x_TD: Tensor, run: Run) -> Tensor:
        before_TD = self.shift(x_TD, run)
        key_TF = F.relu(self.key(torch.lerp(before_TD, x_TD, self.mix_key))).square()
        receptance_TD = self.receptance(torch.lerp(before_TD, x_TD, self.mix_receptance)).sigmoid()
        return receptance_TD * self.value(key_TF)


def mix(hidden_size: int) -> nn.Parameter:
    """How much of the token itself, against the one before it, each channel takes: from none to all."""
    return nn.Parameter(torch.arange(hidden_size) / hidden_size)
