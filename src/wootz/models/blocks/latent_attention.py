"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): of each token only a short latent vector is kept, from
which every head makes its own key and value.

    c = norm(W_down x)                  what is kept, with one rotary key k_r for all heads
    k_h = [W_UK_h c ; k_r]              v_h = W_UV_h c

*Naive* is that. *Absorbed* never makes keys or values: ``q·(W_UK c) = (W_UK^T q)·c``, so the query goes down to the
latent instead, all heads look at the same vector, and W_UV is applied to what comes out. It computes more per pair of
tokens and reads far less, so it is for contexts that remember; in training the naive form is cheaper.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from wootz.models.blocks.norms import NormConfig
from wootz.models.blocks.sizes import check_sizes
from wootz.models.context import LatentKV
from wootz.models.linear import Linear
from wootz.models.positions.rotary import Rotary, RotaryConfig
from wootz.models.run import Remembering, Run


@dataclass(frozen=True, kw_only=True)
class LatentAttentionConfig:
    num_heads: int
    latent_dim: int
    """Of what is kept (``kv_lora_rank``)."""
    plain_dim: int
    """Dimensions of a head's query and key without positions (``qk_nope_head_dim``)."""
    value_dim: int
    rotary: RotaryConfig
    """Of the further ``rotary.dim`` dimensions that carry positions."""
    query_latent_dim: int | None = None
    """Queries come out of a latent vector too (``q_lora_rank``); straight from the input if None."""
    norm: NormConfig = field(default_factory=NormConfig)
    """Of the latent vectors."""
    scale: float | None = None
    """Of the scores; ``(plain_dim + rotary.dim) ** -0.5`` if None."""
    bias: bool = False
    """Of the projections from and to the residual stream."""

    def __post_init__(self) -> None:
        check_sizes(self, "num_heads", "latent_dim", "plain_dim", "value_dim")

    @property
    def query_dim(self) -> int:
        return self.plain_dim + self.rotary.dim

    def build(self, hidden_size: int) -> LatentAttention:
        return LatentAttention(self, hidden_size)


class LatentAttention(Remembering):
    """Suffixes: r the latent, p and R a head's dimensions without and with positions, e its value's."""

    def __init__(self, config: LatentAttentionConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        heads, rotary_dim = config.num_heads, config.rotary.dim
        self.q = nn.Sequential(queries(config, hidden_size))
        self.kv_down = Linear(hidden_size, config.latent_dim + rotary_dim, bias=config.bias)
        self.kv_norm = config.norm.build(config.latent_dim)
        # Not a `Linear`: the absorbed form multiplies with it from either side. Keys' rows, then values', by head.
        self.kv_up = nn.Parameter(torch.empty(heads, config.plain_dim + config.value_dim, config.latent_dim))
        if not self.kv_up.is_meta:
            nn.init.normal_(self.kv_up, std=0.02)
        self.output = Linear(heads * config.value_dim, hidden_size, bias=config.bias, into_residual=True)
        self.rotary = Rotary(config.rotary)
        self.scale = config.query_dim**-0.5 if config.scale is None else config.scale
        self.cache_spec = LatentKV(config.latent_dim + rotary_dim, config.latent_dim)

    def forward(self, x_TD: Tensor, run: Run) -> Tensor:
        config = self.config
        rotation = run.rotation(self.rotary, x_TD.dtype)
        q_THd = self.q(x_TD).unflatten(-1, (config.num_heads, -1))
        q_THp, q_THR = q_THd.split((config.plain_dim, config.rotary.dim), dim=-1)
        latent_Tr, k_TR = self.kv_down(x_TD).split((config.latent_dim, config.rotary.dim), dim=-1)
        latent_Tr, q_THR, k_T1R = self.kv_norm(latent_Tr), rotation(q_THR), rotation(k_TR.unsqueeze(1))
        attend = self._absorbed if run.context.remembers else self._naive
        return self.output(attend(q_THp, q_THR, latent_Tr, k_T1R, run).flatten(1))

    def _naive(self, q_THp: Tensor, q_THR: Tensor, latent_Tr: Tensor, k_T1R: Tensor, run: Run) -> Tensor:
        config = self.config
        up_THx = torch.einsum("tr,hxr->thx", latent_Tr, self.kv_up)
        k_THp, v_THe = up_THx.split((config.plain_dim, config.value_dim), dim=-1)
        q_THd = torch.cat((q_THp, q_THR), -1)
        k_THd = torch.cat((k_THp, k_T1R.expand(-1, config.num_heads, -1)), -1)
        return run.context.attend(self.slot, q_THd, k_THd, v_THe, scale=self.scale)

    def _absorbed(self, q_THp: Tensor, q_THR: Tensor, latent_Tr: Tensor, k_T1R: Tensor, run: Run) -> Tensor:
        config = self.config
        key_up_Hpr, value_up_Her = self.kv_up.split((config.plain_dim, config.value_dim), dim=1)
        q_THd = torch.cat((torch.einsum("thp,hpr->thr", q_THp, key_up_Hpr), q_THR), -1)
        kept_Td = torch.cat((latent_Tr, k_T1R.squeeze(1)), -1)
        out_THr = run.context.attend_latent(self.slot, q_THd, kept_Td, value_dim=config.latent_dim, scale=self.scale)
        return torch.einsum("thr,her->the", out_THr, value_up_Her)


def queries(config: LatentAttentionConfig, hidden_size: int) -> OrderedDict[str, nn.Module]:
    size, latent = config.num_heads * config.query_dim, config.query_latent_dim
    if latent is None:
        return OrderedDict(direct=Linear(hidden_size, size))
    down = Linear(hidden_size, latent, bias=config.bias)
    return OrderedDict(down=down, norm=config.norm.build(latent), up=Linear(latent, size))
