"""A model's layers one range after the other, each range on a rank of its own (GPipe, arXiv 1811.06965).

Hidden states go from stage to stage and, from the last, back to the first, which holds embedding, last norm and head:
tokens enter and leave at the same place, and a tied head needs no second copy of the embedding. Since it has that
extra work, the first stages get the smaller shares of the layers.

With one batch in flight only one stage of P works at a time. Cut into M micro-batches, a pass takes M + P - 1 turns of
which each stage works in M: the rest, ``(P - 1) / (M + P - 1)``, is the *bubble*. So throughput tends to a batch per
time of the slowest stage, while one token's latency stays the sum over all layers, and the hops between.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from torch import Tensor, nn

from wootz.core.errors import ConfigError
from wootz.models.blocks.rwkv7 import TimeMix7
from wootz.models.blocks.shared_block import SharedBlock
from wootz.models.context import Context
from wootz.models.decoder import Decoder, Layer
from wootz.models.run import Run, assign_slots


def stage_layers(num_layers: int, num_stages: int) -> list[range]:
    """Each stage's layers; sizes differ by one at most, and the later stages have the larger."""
    bounds = [stage * num_layers // num_stages for stage in range(num_stages + 1)]
    return [range(start, end) for start, end in pairwise(bounds)]


def bubble(num_stages: int, num_micro_batches: int) -> float:
    """The share of stages' time that goes by idle, if every turn takes equally long."""
    return (num_stages - 1) / (num_micro_batches + num_stages - 1)


class Elsewhere(nn.Module):
    """Stands where something is that another stage holds, so that what is here keeps its number."""


def keep_stage(model: Decoder, stage: int, num_stages: int) -> None:
    """Leave ``model``, in place, what one stage of it holds. Raises `ConfigError` where layers are not apart."""
    if num_stages == 1:
        return
    layers = list(model.layers)
    if len(layers) < num_stages:
        raise ConfigError(f"{len(layers)} layers do not make {num_stages} stages")
    owners = Counter(id(parameter) for layer in layers for parameter in set(layer.parameters()))
    apart = not any(isinstance(module, TimeMix7 | SharedBlock) for module in model.modules())
    if not apart or max(owners.values(), default=0) > 1:
        raise ConfigError(f'the layers of "{model.config.family}" share more than their stream: it makes no pipeline')
    own = stage_layers(len(layers), num_stages)[stage]
    for number in range(len(layers)):
        if number not in own:
            model.layers[number] = Elsewhere()
    model.cache_specs = assign_slots(model)
    if stage:
        # Of no rows rather than absent: a model's device and dtype are its embedding's.
        model.embedding = type(model.embedding).from_pretrained(model.embedding.weight.detach()[:0])
        model.embedding_norm = model.embedding_positions = model.norm = None
        model.head = Elsewhere()  # pyright: ignore[reportAttributeAccessIssue]


def run_stage(model: Decoder, x_TD: Tensor, positions_T: Tensor, context: Context) -> Tensor:
    """Hidden states through the layers that are here."""
    run = Run(positions_T, context)
    for layer in model.layers:
        if isinstance(layer, Layer):
            x_TD = layer(x_TD, run)
    return x_TD
