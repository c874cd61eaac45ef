"""A decoder's layers in one call of the kernels, where that is possible: on a CPU, with packed weights.

At one token per step, starting a dozen operations per layer from Python takes as long as reading the weights. So
layers of the common kind (attention with rotary positions, a gated MLP, RMSNorm before or after) are described to
`wootz.kernels.Stack` once; what each layer means stays defined by its module, and the tests hold the two together.
Whatever is not of that kind runs module by module.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from wootz import kernels
from wootz.engine.attention import PagedCache, PagedContext
from wootz.engine.gpu import layers as gpu
from wootz.engine.sampler import Logits
from wootz.kernels.packing import PackedMatrix
from wootz.models.blocks.attention import Attention
from wootz.models.blocks.mlp import GatedMLP, GatedMLPConfig
from wootz.models.blocks.norms import RMSNorm
from wootz.models.decoder import Decoder, Layer
from wootz.models.linear import Linear
from wootz.models.packed_weight import PackedWeight
from wootz.models.positions.rotary import Rotary, RotaryConfig
from wootz.models.run import Run

if TYPE_CHECKING:
    from wootz.engine.scheduler import Chunk


def fuse(model: object, cache: PagedCache, num_positions: int) -> bool:
    """Let ``model`` run its layers in one call over ``cache``, if all of them can. Returns whether. No text will be
    longer than ``num_positions`` tokens."""
    if not isinstance(model, Decoder):
        return False
    if gpu.fuse(model, cache, is_common):
        return True
    if not kernels.AVAILABLE or model.dtype != torch.float32:
        return False
    layers = [cast(Layer, layer) for layer in model.layers]
    if not all(is_common(layer) and _is_packed(layer) and _can_hold(layer, cache) for layer in layers):
        return False
    if type(model.norm) is not RMSNorm:
        return False
    model.layer_loop = fused = FusedLayers(layers, model.norm, cache, num_positions)
    fused.add_ends(model)
    return True


def whole_step(model: object, chunks: list[Chunk]) -> Logits | None:
    """A step's logits in one call, or from a CUDA graph; None if it has to be computed otherwise."""
    loop = getattr(model, "layer_loop", None)
    return loop.step(chunks) if isinstance(loop, FusedLayers | gpu.GpuLayers) else None


def unfuse(model: object) -> None:
    """Run module by module again, and let go of the cache and the packed weights."""
    if isinstance(model, Decoder):
        model.layer_loop = None


class FusedLayers:
    """In place of a loop over ``layers``, and of the last norm."""

    def __init__(self, layers: list[Layer], norm: RMSNorm, cache: PagedCache, num_positions: int) -> None:
        self.layers, self.norm, self.stack = layers, norm, kernels.Stack()
        self.last_norm = _scale(norm)
        self._logits_SV: Tensor | None = None
        angles: dict[RotaryConfig, tuple[Tensor, Tensor]] = {}
        for layer in layers:
            attention, mlp = cast(Attention, layer.mixer), cast(GatedMLP, layer.ffn)
            rotary = cast(Rotary, attention.rotary)
            if rotary.config not in angles:
                rotation = rotary(torch.arange(num_positions), torch.float32)
                angles[rotary.config] = rotation.cos_T1d.squeeze(1), rotation.sin_T1d.squeeze(1)
            self.stack.add(
                [
                    _norm(layer.mixer_norm),
                    _norm(layer.mixer_output_norm),
                    _norm(layer.ffn_norm),
                    _norm(layer.ffn_output_norm),
                    _norm(attention.q_norm),
                    _norm(attention.k_norm),
                ],
                [*_parts(attention.qkv), *_parts(attention.output), *_parts(mlp.gate_up), *_parts(mlp.down)],
                cache.layers[attention.slot],
                num_heads=attention.config.num_heads,
                window=attention.config.window,
                angles=angles[rotary.config],
                scale=attention.scale,
                activation=mlp.config.activation,
            )

    def add_ends(self, model: Decoder) -> None:
        """Compute whole steps too, if the model has nothing special before and behind its layers."""
        config, embedding, head = model.config, model.embedding.packed, model.head
        if (
            embedding is not None
            and isinstance(head.blocks, PackedWeight)
            and len(head.blocks.matrices) == 1
            and head.bias is None
            and model.embedding_positions is None
            and model.embedding_norm is None
            and config.logit_scale == 1.0
            and config.logit_softcap is None
        ):
            self.stack.set_ends(self.last_norm, embedding, head.blocks.matrices[0], config.embedding_scale)
            self._logits_SV = torch.empty(0, config.vocab_size)

    def step(self, chunks: list[Chunk]) -> Logits | None:
        """A whole step from tokens to logits, which are valid until the next one; None if it can't be."""
        if self._logits_SV is None or not all(map(_is_plain, chunks)):
            return None
        token_ids: list[int] = []
        choosing_rows: list[int] = []
        places: list[tuple[int, int, int, list[int]]] = []
        for chunk in chunks:
            places.append((len(token_ids), chunk.num_rows, chunk.start, chunk.sequence.table.blocks))
            token_ids += chunk.token_ids
            if chunk.samples:
                choosing_rows += range(len(token_ids) - 1 - chunk.num_drafted, len(token_ids))
        if len(self._logits_SV) != len(choosing_rows):
            self._logits_SV = self._logits_SV.new_empty(len(choosing_rows), self._logits_SV.shape[1])
        return Logits(self._logits_SV, self.stack.whole(token_ids, places, choosing_rows, self._logits_SV))

    def __call__(self, x_TD: Tensor, run: Run) -> Tensor:
        context = run.context
        if not isinstance(context, PagedContext) or context.branches:
            for layer in self.layers:
                x_TD = layer(x_TD, run)
            return self.norm(x_TD)
        x_TD = x_TD.contiguous()
        self.stack.run(x_TD, context.kernel_chunks, self.last_norm)
        return x_TD


def is_common(layer: Layer) -> bool:
    """Whether it is of the kind that both this file and `wootz.engine.gpu.layers` are about."""
    config, attention, mlp = layer.config, layer.mixer, layer.ffn
    if type(attention) is not Attention or type(mlp) is not GatedMLP or config.parallel:
        return False
    norms = [layer.mixer_norm, layer.mixer_output_norm, layer.ffn_norm, layer.ffn_output_norm]
    norms += [attention.q_norm, attention.k_norm]
    own, rotary = attention.config, attention.rotary
    return (
        config.norms in ("pre", "sandwich", "output")
        and config.residual_scale == 1.0
        and all(norm is None or type(norm) is RMSNorm for norm in norms)
        and rotary is not None
        and not rotary.config.interleaved
        and rotary.config.decay is None
        and own.causal
        and attention.score_bias is None
        and not own.qkv_by_group
        and (own.qk_norm is None or own.qk_norm_over == "head")
        and cast(GatedMLPConfig, mlp.config).activation in kernels.ACTIVATIONS
    )


def _is_packed(layer: Layer) -> bool:
    attention, mlp = cast(Attention, layer.mixer), cast(GatedMLP, layer.ffn)
    linears = [attention.qkv, attention.output, mlp.gate_up, mlp.down]
    return (
        attention.config.softcap is None
        and attention.sinks_H is None
        and all(type(linear) is Linear and isinstance(linear.blocks, PackedWeight) for linear in linears)
        and all(size % 32 == 0 for size in (attention.qkv.in_features, mlp.down.in_features))
    )


def _can_hold(layer: Layer, cache: PagedCache) -> bool:
    held = cache.layers[cast(Attention, layer.mixer).slot]
    return isinstance(held, Tensor) and kernels.can_attend(held)


def _is_plain(chunk: Chunk) -> bool:
    """Whether it asks for nothing but logits: no adapter, no scores of its prompt, no draft with branches."""
    request, draft = chunk.sequence.request, chunk.draft
    return request.adapter is None and request.prompt_scores is None and (draft is None or draft.is_chain)


def _scale(norm: RMSNorm) -> tuple[Tensor, float]:
    return (norm.weight.detach() + norm.offset).contiguous(), norm.eps


def _norm(norm: nn.Module | None) -> tuple[Tensor | None, float]:
    if norm is None:
        return None, 0.0
    return _scale(cast(RMSNorm, norm))


def _parts(linear: Linear) -> Iterable[tuple[PackedMatrix, Tensor | None]]:
    """Each of a projection's parts, with its rows of the bias."""
    matrices = cast(PackedWeight, linear.blocks).matrices
    biases = linear.bias.detach().split(linear.parts) if linear.bias is not None else [None] * len(matrices)
    return zip(matrices, biases, strict=True)
