"""Multi-token prediction: beside the next token, the model learns to say those after it.

A head of depth k stands on a trunk of hidden states and predicts the token k places after the next one, through the
trunk's own unembedding. Two kinds:

- sequential (DeepSeek-V3, arXiv 2412.19437): head k mixes the hidden state of depth k - 1 with the embedding of the
  k-th token to come, so it is one more step of the same chain. In training that token is the true one; when drafting it
  is the one the depth before proposed.
- parallel (arXiv 2404.19737): every head reads the trunk alone, and guesses without knowing what comes between.

The trunk gets a denser signal, and the heads are a draft model that is already trained (`MultiTokenModel.propose`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wootz.models.blocks.norms import NormConfig
from wootz.models.blocks.sizes import check_sizes
from wootz.models.context import CacheSpec, PackedContext
from wootz.models.decoder import Decoder, Layer, LayerConfig
from wootz.models.linear import Linear
from wootz.models.run import Run, assign_slots


@dataclass(frozen=True, kw_only=True)
class MultiTokenConfig:
    depth: int = 1
    """How many tokens beyond the next one are predicted."""
    sequential: bool = True
    layer: LayerConfig | None = None
    """Of each head; like the trunk's last layer if None."""

    def __post_init__(self) -> None:
        check_sizes(self, "depth")

    def build(self, trunk: Decoder) -> MultiTokenModel:
        return MultiTokenModel(self, trunk)


class MultiTokenModel(nn.Module):
    """A trunk, which stays the model that it is, and heads that share its embedding and its unembedding."""

    def __init__(self, config: MultiTokenConfig, trunk: Decoder) -> None:
        super().__init__()
        self.config, self.trunk = config, trunk
        layer, size, norm = config.layer or trunk.config.layers[-1], trunk.config.hidden_size, trunk.config.norm
        self.heads = nn.ModuleList(Head(layer, size, norm, sequential=config.sequential) for _ in range(config.depth))
        self.cache_specs: list[CacheSpec] = assign_slots(self)
        for module in self.heads.modules():
            if isinstance(module, Linear):
                nn.init.normal_(module.weight, std=trunk.config.initializer_range)

    def forward(self, token_ids_T: Tensor, lengths: list[int]) -> list[Tensor]:
        """Hidden states of documents laid end to end, for each depth from 0 (the trunk). `unembed` of the i-th state of
        a document at depth k gives the logits of its token i + 1 + k.

        A depth needs the true tokens up to k places on, so each document has k states fewer there: ``(T_k, D)``, with
        ``T_k`` the sum of ``max(0, length - k)``.
        """
        positions_T = torch.cat([torch.arange(length, device=token_ids_T.device) for length in lengths])
        hidden_TD = self.trunk(token_ids_T, positions_T, PackedContext(lengths))
        states = [hidden_TD]
        for depth, head in enumerate(self.heads, 1):
            before = depth - 1 if self.config.sequential else 0
            kept_T = _without_last(lengths, 0, depth).to(token_ids_T.device)
            state_TD = states[before][_without_last(lengths, before, depth).to(token_ids_T.device)]
            ahead_TD = self.trunk.embedding(token_ids_T[kept_T + depth])
            context = PackedContext([length - depth for length in lengths if length > depth])
            states.append(head(state_TD, ahead_TD, Run(positions_T[kept_T], context)) if len(kept_T) else state_TD)
        return states

    def unembed(self, hidden_TD: Tensor) -> Tensor:
        return self.trunk.unembed(hidden_TD)

    @torch.inference_mode()
    def propose(self, token_ids_T: Tensor) -> Tensor:
        """The next ``1 + depth`` tokens of one text, each the likeliest: the first is what the trunk itself would
        write, the others are drafts for it to check."""
        length, device = len(token_ids_T), token_ids_T.device
        run = Run(torch.arange(length, device=device), PackedContext([length]))
        hidden_TD = trunk_TD = self.trunk(token_ids_T, run.positions_T, run.context)
        seen_T = torch.cat((token_ids_T, self._likeliest(hidden_TD)))
        for depth, head in enumerate(self.heads, 1):
            before_TD = hidden_TD if self.config.sequential else trunk_TD
            hidden_TD = head(before_TD, self.trunk.embedding(seen_T[depth:]), run)
            seen_T = torch.cat((seen_T, self._likeliest(hidden_TD)))
        return seen_T[length:]

    def _likeliest(self, hidden_TD: Tensor) -> Tensor:
        return self.unembed(hidden_TD[-1:]).argmax(-1)


class Head(nn.Module):
    """One more layer: if sequential, ``norm(layer(merge([norm(token ahead), norm(state)])))``."""

    def __init__(self, layer: LayerConfig, hidden_size: int, norm: NormConfig, *, sequential: bool) -> None:
        super().__init__()
        self.token_norm = norm.build(hidden_size) if sequential else None
        self.state_norm = norm.build(hidden_size) if sequential else None
        self.merge = Linear(2 * hidden_size, hidden_size) if sequential else None
        self.layer = Layer(layer, hidden_size, norm)
        self.norm = norm.build(hidden_size)

    def forward(self, state_TD: Tensor, ahead_TD: Tensor, run: Run) -> Tensor:
        if self.merge is not None and self.token_norm is not None and self.state_norm is not None:
            state_TD = self.merge(torch.cat((self.token_norm(ahead_TD), self.state_norm(state_TD)), -1))
        return self.norm(self.layer(state_TD, run))


def multi_token_loss(model: MultiTokenModel, rows_BT: Tensor, weight: float = 0.3) -> Tensor:
    """Cross-entropy of the next token plus ``weight`` times the mean of that of all depths, in nats per token.

    ``rows_BT`` are whole texts, labels included: T tokens give T - 1 predictions of the next one. DeepSeek-V3 weighs by
    0.3 at first and 0.1 later.
    """
    losses = depth_losses(model, rows_BT)
    return losses[0] + weight * losses[1:].mean()


def depth_losses(model: MultiTokenModel, rows_BT: Tensor) -> Tensor:
    """Mean cross-entropy ``(1 + depth,)`` of each depth, over the tokens that it predicts."""
    num_rows, length = rows_BT.shape[0], rows_BT.shape[1] - 1
    if length <= model.config.depth:
        raise ValueError(f"rows of {length + 1} tokens leave depth {model.config.depth} nothing to predict")
    states = model(rows_BT[:, :-1].flatten(), [length] * num_rows)
    return torch.stack(
        [
            F.cross_entropy(model.unembed(hidden_TD), rows_BT[:, 1 + depth :].flatten())
            for depth, hidden_TD in enumerate(states)
        ]
    )


def _without_last(lengths: list[int], dropped: int, drop: int) -> Tensor:
    """Where documents' tokens stand, without the last ``drop`` of each, when ``dropped`` of those are gone already."""
    present = [max(0, length - dropped) for length in lengths]
    starts = [0, *accumulate(present)]
    return torch.cat([start + torch.arange(max(0, n - drop)) for start, n in zip(starts[:-1], lengths, strict=True)])
