"""Questions to ask of a model, by looking into one forward pass.

- Where does attention go that is needed nowhere? `attention_sinks`: softmax must put its mass somewhere, and trained
  models put it on the first tokens (arXiv 2309.17453).
- Which few numbers carry it? `massive_activations`, and `ablate` to see what happens without them (arXiv 2402.17762).
- Does the model know the order of its tokens, and does it look ahead? `permutation_gap` and `future_leak`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wootz.models.attention.dense import attention_weights
from wootz.models.context import PackedContext, ScoreBias, relative_places, visible
from wootz.models.decoder import Decoder

# --- attention sinks -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SinkReport:
    """Per attention layer and head, ``(S, H)``, means over the queries behind the first tokens."""

    first_mass: Tensor
    """The share of attention that the first tokens get."""
    null_mass: Tensor
    """What a learned sink (gpt-oss) takes; zero in other models."""
    uniform: float
    """What the first tokens would get if all tokens got the same."""

    def sinks(self, threshold: float = 0.3) -> list[tuple[int, int]]:
        """The heads (layer, head) in which the first tokens get more than this, and more than twice their share."""
        return [tuple(pair) for pair in (self.first_mass > max(threshold, 2 * self.uniform)).nonzero().tolist()]


@torch.no_grad()
def attention_sinks(model: Decoder, token_ids_T: Tensor, *, num_first: int = 1) -> SinkReport:
    """Measured on one text. All layers must have the same number of heads and none may be latent or recurrent."""
    context = _Watching(len(token_ids_T), num_first)
    model(token_ids_T, torch.arange(len(token_ids_T), device=model.device), context)
    places = torch.arange(num_first, len(token_ids_T), dtype=torch.float64)
    first, null = (torch.stack(masses).cpu() for masses in (context.first, context.null))
    return SinkReport(first, null, (num_first / (places + 1)).mean().item())


class _Watching(PackedContext):
    def __init__(self, num_tokens: int, num_first: int) -> None:
        super().__init__([num_tokens])
        self.num_first = num_first
        self.first: list[Tensor] = []
        self.null: list[Tensor] = []

    def attend(self, slot: int, q_THd: Tensor, k_TKd: Tensor, v_TKe: Tensor, **how: Any) -> Tensor:
        q_HTd, k_KTd = q_THd.transpose(0, 1), k_TKd.transpose(0, 1)
        relative_TT = relative_places(len(q_THd), len(k_TKd), q_THd.device)
        bias: ScoreBias | None = how.get("bias")
        weights_HTT = attention_weights(
            q_HTd,
            k_KTd,
            scale=how["scale"],
            mask_QL=visible(relative_TT, how.get("causal", True), how.get("window")),
            softcap=how.get("softcap"),
            sinks_H=how.get("sinks_H"),
            bias_HQL=None if bias is None else bias(q_HTd, k_KTd, relative_TT),
        )
        later_HQT = weights_HTT[:, self.num_first :]
        self.first.append(later_HQT[..., : self.num_first].sum(-1).mean(-1))
        self.null.append(1 - later_HQT.sum(-1).mean(-1))
        return super().attend(slot, q_THd, k_TKd, v_TKe, **how)


# --- massive activations ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Activation:
    """One number of the residual stream behind a layer."""

    layer: int
    token: int
    feature: int
    value: float
    ratio: float
    """Its size over the median size behind that layer."""


@torch.no_grad()
def massive_activations(
    model: Decoder, token_ids_T: Tensor, *, at_least: float = 100.0, ratio: float = 1000.0
) -> list[Activation]:
    """The numbers larger than ``at_least`` and than ``ratio`` times the median of their layer; by layer, largest first.
    The thresholds are the paper's, for models of billions of parameters."""
    found = []
    for layer, hidden_TD in enumerate(_residual_stream(model, token_ids_T)):
        sizes_TD = hidden_TD.abs().float()
        median = sizes_TD.median().item()
        places = ((sizes_TD > at_least) & (sizes_TD > ratio * median)).nonzero().tolist()
        places.sort(key=lambda place: -sizes_TD[tuple(place)].item())
        found += [
            Activation(
                layer, token, feature, hidden_TD[token, feature].item(), sizes_TD[token, feature].item() / median
            )
            for token, feature in places
        ]
    return found


@dataclass(frozen=True)
class AblationReport:
    """Mean loss per token, in nats."""

    loss: float
    ablated: float
    """With the given activations set to zero."""
    random: tuple[float, ...]
    """With as many others set to zero behind the same layers, drawn anew for each number."""


@torch.no_grad()
def ablate(
    model: Decoder, token_ids_T: Tensor, activations: Sequence[Activation], *, num_random: int = 5, seed: int = 0
) -> AblationReport:
    """What the model's loss on this text becomes without these activations, and without as many random ones."""
    generator = torch.Generator().manual_seed(seed)
    places = [(it.layer, it.token, it.feature) for it in activations]

    def elsewhere() -> list[tuple[int, int, int]]:
        tokens = torch.randint(len(token_ids_T), (len(places),), generator=generator).tolist()
        features = torch.randint(model.config.hidden_size, (len(places),), generator=generator).tolist()
        return [(layer, *place) for (layer, _, _), *place in zip(places, tokens, features, strict=True)]

    return AblationReport(
        loss=_loss(model, token_ids_T, []),
        ablated=_loss(model, token_ids_T, places),
        random=tuple(_loss(model, token_ids_T, elsewhere()) for _ in range(num_random)),
    )


def _residual_stream(model: Decoder, token_ids_T: Tensor) -> list[Tensor]:
    """Behind each layer, ``(T, D)``."""
    seen: list[Tensor] = []

    def see(_module: object, _inputs: object, out: Tensor) -> None:
        seen.append(out)

    hooks = [layer.register_forward_hook(see) for layer in model.layers]
    try:
        model(token_ids_T, torch.arange(len(token_ids_T), device=model.device), PackedContext([len(token_ids_T)]))
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _loss(model: Decoder, token_ids_T: Tensor, zeroed: Sequence[tuple[int, int, int]]) -> float:
    with _zeroed(model, zeroed):
        return F.cross_entropy(model.logits(token_ids_T)[:-1], token_ids_T[1:]).item()


@contextmanager
def _zeroed(model: Decoder, places: Sequence[tuple[int, int, int]]) -> Iterator[None]:
    def zero_behind(layer: int) -> Any:
        tokens, features = zip(*((token, feature) for at, token, feature in places if at == layer), strict=True)

        def hook(_module: object, _inputs: object, out: Tensor) -> Tensor:
            out = out.clone()
            out[list(tokens), list(features)] = 0
            return out

        return model.layers[layer].register_forward_hook(hook)

    hooks = [zero_behind(layer) for layer in {layer for layer, _, _ in places}]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# --- order -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def permutation_gap(model: Decoder, token_ids_T: Tensor, permutation_T: Tensor) -> float:
    """Largest difference between the outputs of the permuted text and the permuted outputs of the text, relative to the
    largest output.

    Attention that sees everything, without positions, is a function of a *set*: this is zero but for rounding, and the
    model cannot tell two word orders apart. Positions break it, and so does a causal mask by itself, for a token knows
    how many are before it.
    """
    plain, permuted = (_hidden(model, tokens) for tokens in (token_ids_T, token_ids_T[permutation_T]))
    return ((permuted - plain[permutation_T]).abs().max() / plain.abs().max()).item()


@torch.no_grad()
def future_leak(model: Decoder, token_ids_T: Tensor, changed_at: int) -> float:
    """Largest change of the outputs before a token when that token is changed, relative to the largest output: zero for
    a model that is causal."""
    changed_T = token_ids_T.clone()
    changed_T[changed_at] = (changed_T[changed_at] + 1) % model.config.vocab_size
    before, after = _hidden(model, token_ids_T)[:changed_at], _hidden(model, changed_T)[:changed_at]
    return ((before - after).abs().max() / before.abs().max()).item()


def _hidden(model: Decoder, token_ids_T: Tensor) -> Tensor:
    num_tokens = len(token_ids_T)
    return model(token_ids_T, torch.arange(num_tokens, device=model.device), PackedContext([num_tokens]))
