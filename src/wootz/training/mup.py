"""muP, the maximal update parametrisation (arXiv 2203.03466): widths that share one best learning rate.

In the usual parametrisation a wider model wants a smaller learning rate, because what an update adds to a layer's
output grows with its width. Here every parameter's initial size and rate depend on which of its dimensions grow with
the width, so that activations move as much in a wide model as in a narrow one (`coordinates` shows it), and a rate that
was tuned on a narrow model holds for a wide one. For Adam, relative to a ``base`` model of the same make:

| parameter | initial deviation | learning rate |
|---|---|---|
| hidden matrices | ``(base fan_in / fan_in) ** 0.5`` | ``base fan_in / fan_in`` |
| embeddings, gains, biases | 1 | 1 |
| head | 1, and logits times ``base width / width`` | 1 |
| other rows that read the stream (routers) | ``base fan_in / fan_in`` | ``base fan_in / fan_in`` |

and attention scores are scaled by ``base d ** 0.5 / d``, not ``d ** -0.5``, where heads grow. Nothing in a model's
files knows of this: `apply_mup` goes over a finished model, and `fold_mup` turns what it left into a plain one.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from wootz.core.errors import BadRequestError
from wootz.models.blocks.attention import Attention
from wootz.models.decoder import Decoder


@dataclass(frozen=True)
class Mup:
    """What was done to a model."""

    lr_scales: dict[str, float]
    """Of each parameter, by name: its learning rate is the base model's times this."""
    logit_scale: float
    """By which logits were multiplied on top of the model's own."""

    def groups(self, model: nn.Module, *, weight_decay: float = 0.1, keep_decay: bool = True) -> list[dict[str, Any]]:
        """Parameter groups for an optimiser, each with its ``lr_scale``; vectors do not decay. AdamW multiplies decay
        by the learning rate, so with ``keep_decay`` a matrix whose rate is scaled down decays as fast as the base
        model's."""
        found: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
        for name, parameter in model.named_parameters():
            scale = self.lr_scales[name]
            decay = weight_decay / (scale if keep_decay else 1.0) if parameter.ndim > 1 else 0.0
            found[scale, decay].append(parameter)
        return [
            {"params": parameters, "lr_scale": scale, "weight_decay": decay}
            for (scale, decay), parameters in found.items()
        ]


@torch.no_grad()
def apply_mup(model: Decoder, base: Decoder) -> Mup:
    """Rescale the fresh weights of ``model``, its logits and its attention scores, in place. ``base`` is the model, on
    the meta device say, whose learning rate is known: the same but for its width. Raises `BadRequestError` if it is
    something else."""
    shapes = {name: parameter.shape for name, parameter in base.named_parameters()}
    own = dict(model.named_parameters())
    if shapes.keys() != own.keys():
        odd = sorted(shapes.keys() ^ own.keys())[0]
        raise BadRequestError(f'the base model is of another make: "{odd}" is in one of the two only')
    scales: dict[str, float] = {}
    tables = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, nn.Embedding)}
    for name, parameter in own.items():
        deviation, scales[name] = _scales(name in tables | {"head.weight"}, shapes[name], parameter.shape)
        if parameter.ndim > 1:
            # A factor on the initial weights, so what else they were initialised by (their depth) still holds.
            parameter.mul_(deviation * base.config.initializer_range / model.config.initializer_range)
    ratio = base.config.hidden_size / model.config.hidden_size
    model.config = replace(model.config, logit_scale=model.config.logit_scale * ratio)
    for mixer, theirs in zip(_attentions(model), _attentions(base), strict=True):
        d, base_d = mixer.config.head_dim, theirs.config.head_dim
        mixer.scale = theirs.scale * base_d / d
    return Mup(scales, ratio)


def _scales(is_of_tokens: bool, base: torch.Size, own: torch.Size) -> tuple[float, float]:
    """Of the initial deviation, and of the learning rate."""
    if len(own) < 2 or is_of_tokens:
        return 1.0, 1.0
    shrink = base[-1] / own[-1]
    if shrink == 1.0:
        return 1.0, 1.0  # reads something of fixed size: an embedding transposed, a convolution
    if base[-2] != own[-2]:
        return shrink**0.5, shrink
    return shrink, shrink


def _attentions(model: nn.Module) -> list[Attention]:
    return [module for module in model.modules() if isinstance(module, Attention)]


@torch.no_grad()
def fold_mup(model: Decoder, mup: Mup) -> Decoder:
    """Put the factors of logits and scores into the weights, in place: what is left is a plain model of its family,
    which is saved, served and loaded as any other. Raises `BadRequestError` for a tied head, which the embedding would
    follow."""
    if model.config.tie_embeddings and mup.logit_scale != 1.0:
        raise BadRequestError("the factor of a tied head cannot be folded: the embedding would change too")
    model.head.weight.mul_(mup.logit_scale)
    if model.head.bias is not None:
        model.head.bias.mul_(mup.logit_scale)
    model.config = replace(model.config, logit_scale=model.config.logit_scale / mup.logit_scale)
    for mixer in _attentions(model):
        config = mixer.config
        plain = config.head_dim**-0.5 if config.scale is None else config.scale
        if mixer.scale != plain:
            if mixer.q_norm is not None:
                mixer.q_norm.get_parameter("weight").mul_(mixer.scale / plain)
            else:
                for weight in (mixer.qkv.weight, mixer.qkv.bias):
                    if weight is not None:
                        weight[: config.num_heads * config.head_dim].mul_(mixer.scale / plain)
            mixer.scale = plain
    return model
