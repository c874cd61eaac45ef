"""A decoder's layers on a GPU: matrix products through `Linear`, and between them as few passes over memory as can be.

Module by module, a layer of a Llama reads and writes the residual stream and what its parts hand on some twenty times,
each time with a launch. Here it is four products and five kernels: sum and norm, rotation and cache, attention, sum and
norm, gated product. What each layer means stays defined by its module, and the tests hold the two together; what is not
of the common kind runs module by module. The counterpart for CPUs is `wootz.engine.fused`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import Tensor, nn

from wootz.engine.attention import PagedCache, PagedContext
from wootz.engine.gpu.graphs import DecodeContext, DecodeGraphs
from wootz.engine.gpu.paged import serves
from wootz.engine.sampler import Logits
from wootz.engine.scheduler import Chunk
from wootz.models.blocks.attention import Attention
from wootz.models.blocks.mlp import GatedMLP
from wootz.models.blocks.norms import RMSNorm
from wootz.models.decoder import Decoder, Layer
from wootz.models.positions.rotary import Rotary
from wootz.models.run import Run


def fuse(model: Decoder, cache: PagedCache, is_common: Callable[[Layer], bool]) -> bool:
    """Let ``model`` run its layers this way over ``cache``, if it can. Returns whether. The common kind is that of
    `wootz.engine.fused`."""
    layers = [cast(Layer, layer) for layer in model.layers]
    if not serves(model.device, model.dtype) or type(model.norm) is not RMSNorm:
        return False
    if not all(is_common(layer) and _can_hold(layer, cache) for layer in layers):
        return False
    model.layer_loop = GpuLayers(model, layers, model.norm, cache)
    return True


class GpuLayers:
    """In place of a loop over ``layers``, and of the last norm."""

    def __init__(self, model: Decoder, layers: list[Layer], norm: RMSNorm, cache: PagedCache) -> None:
        self.layers, self.norm, self.cache = layers, norm, cache
        self.graphs = DecodeGraphs(model, cache)

    def step(self, chunks: list[Chunk]) -> Logits | None:
        """A whole step from a CUDA graph; None if it has to be computed otherwise."""
        logits_SV = self.graphs.run(chunks)
        return None if logits_SV is None else Logits(logits_SV)

    def __call__(self, x_TD: Tensor, run: Run) -> Tensor:
        from wootz.kernels.triton import activations
        from wootz.kernels.triton.norms import add_norm

        context = run.context
        if isinstance(context, PagedContext) and context.branches:
            for layer in self.layers:
                x_TD = layer(x_TD, run)
            return self.norm(x_TD)
        assert isinstance(context, PagedContext | DecodeContext)
        x_TD = x_TD.contiguous()
        eps, offset = self.norm.eps, self.norm.offset
        added_TD = added_scale = None
        for layer in self.layers:
            attention, mlp = cast(Attention, layer.mixer), cast(GatedMLP, layer.ffn)
            normed_TD = add_norm(x_TD, added_TD, added_scale, _scale(layer.mixer_norm), eps, offset)
            added_TD, added_scale = self._attend(attention, normed_TD, run, context), _scale(layer.mixer_output_norm)
            normed_TD = add_norm(x_TD, added_TD, added_scale, _scale(layer.ffn_norm), eps, offset)
            gated_TF = activations.gated(mlp.gate_up(normed_TD), mlp.config.activation)
            added_TD, added_scale = mlp.down(gated_TF), _scale(layer.ffn_output_norm)
        return add_norm(x_TD, added_TD, added_scale, self.norm.weight, eps, offset)

    def _attend(self, attention: Attention, x_TD: Tensor, run: Run, context: PagedContext | DecodeContext) -> Tensor:
        from wootz.kernels.triton.attention import Cache, Scoring
        from wootz.kernels.triton.rope import rotate_and_store

        config, kv = attention.config, self.cache.layers[attention.slot]
        rotation = run.rotation(cast(Rotary, attention.rotary), x_TD.dtype)
        q_norm, k_norm = cast(RMSNorm | None, attention.q_norm), cast(RMSNorm | None, attention.k_norm)
        q_THd = rotate_and_store(
            attention.qkv(x_TD).unflatten(-1, (-1, config.head_dim)),
            rotation.cos_T1d.squeeze(1),
            rotation.sin_T1d.squeeze(1),
            kv,
            context.slots_T,
            config.num_heads,
            q_scale_d=_scale(q_norm),
            k_scale_d=_scale(k_norm),
            eps=0.0 if q_norm is None else q_norm.eps,
            offset=0.0 if q_norm is None else q_norm.offset,
        )
        scoring = Scoring(attention.scale, config.window, config.softcap, attention.sinks_H)
        return attention.output(context.paged.attend(q_THd, Cache(kv), scoring).flatten(1))


def _can_hold(layer: Layer, cache: PagedCache) -> bool:
    held = cache.layers[cast(Attention, layer.mixer).slot]
    return isinstance(held, Tensor) and serves(held.device, held.dtype)


def _scale(norm: nn.Module | None) -> Tensor | None:
    return None if norm is None else cast(RMSNorm, norm).weight
