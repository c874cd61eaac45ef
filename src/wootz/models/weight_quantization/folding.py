"""Where a factor for each input channel can go: into the operation before, so that nothing changes but the rounding.

    norm(x) W^T  =  (norm(x) / s) (W s)^T           the norm's weight takes the division
    down(act(gate) * up)                            up's rows take it, down's columns the factor
    output(attention(q, k, v))                      v's rows, as attention is linear in the values

A `Fold` is such a place: the projections that share an input and what comes before them. Experts of one layer share
their first input, so there they share the factors too; into their second projection each has its own. Mixers whose
input goes elsewhere as well, and activations that are not linear in what they get, offer no place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from wootz.models.blocks.attention import Attention
from wootz.models.blocks.experts import ClampedSwiGLU, Experts
from wootz.models.blocks.gated_conv import GatedConv
from wootz.models.blocks.latent_attention import LatentAttention
from wootz.models.blocks.linear_attention import LinearAttention
from wootz.models.blocks.mamba import Mamba
from wootz.models.blocks.mamba2 import Mamba2
from wootz.models.blocks.mlp import MLP, GatedMLP
from wootz.models.blocks.moe import MoE
from wootz.models.blocks.norms import RMSNorm
from wootz.models.decoder import Layer
from wootz.models.linear import Linear
from wootz.models.weight_quantization.calibration import Key


@dataclass(frozen=True)
class Fold:
    readers: tuple[Key, ...]
    """Projections whose columns are multiplied."""
    divide: Callable[[Tensor], None]
    """Divides what comes before by a factor for each channel."""
    also: tuple[Tensor, ...] = ()
    """Other weights ``(…, I)`` that read the same input, and are multiplied too: a router's."""
    tie: Callable[[Tensor], Tensor] = field(default=lambda scale_I: scale_I)
    """Makes factors equal that must be: one value head is read by several query heads."""

    @torch.no_grad()
    def apply(self, scale_I: Tensor) -> None:
        """``scale`` is tied already."""
        for module, expert in self.readers:
            weight = module.weight if isinstance(module, Linear) else module.weight[expert]
            weight.mul_(scale_I)
        for weight in self.also:
            weight.mul_(scale_I)
        self.divide(scale_I)


def folds(layer: Layer) -> list[Fold]:
    """All of a layer's, in no order: none changes what another rounds but for factors of whole rows."""
    found = [*_after_norms(layer)]
    for module in layer.modules():
        if isinstance(module, Attention) and (fold := _values(module)):
            found.append(fold)
        elif isinstance(module, LatentAttention) and "up" in module.q._modules:
            found.append(Fold(((cast(Linear, module.q.up), 0),), _divide_norm(cast(nn.Module, module.q.norm))))
        elif isinstance(module, GatedMLP) and isinstance(module.gate_up, Linear):
            found.append(Fold(((module.down, 0),), _divide_rows(module.gate_up, module.down.in_features)))
        elif (
            isinstance(module, Experts) and not module.interleaved and not isinstance(module.activation, ClampedSwiGLU)
        ):
            found += [_expert(module, expert) for expert in range(len(module.down.weight))]
    return found


def _after_norms(layer: Layer) -> Iterator[Fold]:
    norm, ffn_norm = layer.mixer_norm, layer.ffn_norm
    mixer, ffn = _readers(layer.mixer), _readers(layer.ffn)
    if layer.config.parallel and norm is not None:
        if mixer and ffn:
            yield Fold((*mixer[0], *ffn[0]), _divide_norm(norm), (*mixer[1], *ffn[1]))
        return
    if norm is not None and mixer:
        yield Fold(mixer[0], _divide_norm(norm), mixer[1])
    if ffn_norm is not None and ffn:
        yield Fold(ffn[0], _divide_norm(ffn_norm), ffn[1])


def _readers(part: nn.Module | None) -> tuple[tuple[Key, ...], tuple[Tensor, ...]] | None:
    """All that reads a part's input, projections and other weights; None where that is not known to be all."""
    match part:
        case Attention() | LinearAttention():
            return ((part.qkv, 0),), ()
        case LatentAttention():
            first = part.q._modules.get("down") or part.q.direct
            return ((cast(Linear, first), 0), (part.kv_down, 0)), ()
        case Mamba() | Mamba2() | GatedConv():
            return ((part.in_proj, 0),), ()
        case GatedMLP():
            return ((part.gate_up, 0),), ()
        case MLP():
            return ((part.up, 0),), ()
        case MoE() if isinstance(part.experts, Experts):
            gate_up, router = part.experts.gate_up, part.router
            experts = tuple((gate_up, expert) for expert in range(len(gate_up.weight)))
            shared = _readers(part.shared)
            others = [router.weight_ED, router.noise_ED, part.shared_gate and part.shared_gate.weight]
            return (*experts, *(shared[0] if shared else ())), tuple(other for other in others if other is not None)
    return None


def _divide_norm(norm: nn.Module) -> Callable[[Tensor], None]:
    def divide(scale_I: Tensor) -> None:
        offset, weight = norm.offset if isinstance(norm, RMSNorm) else 0.0, cast(Tensor, norm.weight)
        weight.copy_((weight + offset) / scale_I - offset)
        if (bias := getattr(norm, "bias", None)) is not None:
            bias.div_(scale_I)

    return divide


def _divide_rows(linear: Linear, count: int) -> Callable[[Tensor], None]:
    """The last ``count`` rows: up lies below gate, values below keys."""

    def divide(scale_I: Tensor) -> None:
        linear.weight[-count:].div_(scale_I.unsqueeze(1))
        if linear.bias is not None:
            linear.bias[-count:].div_(scale_I)

    return divide


def _values(attention: Attention) -> Fold | None:
    config = attention.config
    if config.qkv_by_group or not isinstance(attention.qkv, Linear) or not isinstance(attention.output, Linear):
        return None
    readers = config.num_heads // config.num_kv_heads

    def by_head(scale_I: Tensor) -> Tensor:
        return scale_I.view(config.num_kv_heads, readers, config.head_dim).mean(1)

    divide_values = _divide_rows(attention.qkv, config.num_kv_heads * config.head_dim)
    return Fold(
        ((attention.output, 0),),
        lambda scale_I: divide_values(by_head(scale_I).flatten()),
        tie=lambda scale_I: by_head(scale_I).unsqueeze(1).expand(-1, readers, -1).flatten(),
    )


def _expert(experts: Experts, expert: int) -> Fold:
    count = experts.down.weight.shape[-1]

    def divide(scale_I: Tensor) -> None:
        experts.gate_up.weight[expert, -count:].div_(scale_I.unsqueeze(1))
        if experts.gate_up.bias is not None:
            experts.gate_up.bias[expert, -count:].div_(scale_I)

    return Fold(((experts.down, expert),), divide)
