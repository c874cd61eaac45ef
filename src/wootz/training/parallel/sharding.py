"""Fully sharded data parallelism (ZeRO, arXiv 1910.02054; PyTorch's FSDP2): parameters, gradients and optimiser state
of every rank are ``1 / n`` of the whole, gathered layer by layer for the time they are needed.

Gradients are *summed* over ranks, in the dtype that the parameters are kept in (float32), whatever they are computed
in: a small gradient added to a large one in bfloat16 is gone. Each rank weighs its loss by its share of the labels, so
the sum is the gradient of the mean over all of them.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from wootz.models.blocks.moe import MoE
from wootz.models.decoder import Decoder, Layer
from wootz.training.parallel.experts import SpreadExperts
from wootz.training.parallel.layout import Mesh


def shard(root: nn.Module, model: Decoder, mesh: Mesh, *, reduce_dtype: torch.dtype = torch.float32) -> None:
    """Shard each layer of ``model`` by itself, and the rest with ``root``, in place."""
    layout = mesh.layout
    # In a pipeline a layer would else be gathered again for every micro-batch.
    reshard = layout.zero == 3 and layout.pipeline == 1
    policy = MixedPrecisionPolicy(param_dtype=layout.compute_dtype, reduce_dtype=reduce_dtype)
    for layer in model.layers:
        if isinstance(layer, Layer):
            if isinstance(layer.ffn, MoE) and isinstance(layer.ffn.experts, SpreadExperts):
                experts = layer.ffn.experts
                fully_shard(experts, mesh=mesh["expert_shard"], mp_policy=policy, reshard_after_forward=reshard)
            fully_shard(layer, mesh=mesh["shard"], mp_policy=policy, reshard_after_forward=reshard)
    # The root's stay gathered: the backward pass begins with them, and `unembed` is called after the forward pass.
    fully_shard(root, mesh=mesh["shard"], mp_policy=policy, reshard_after_forward=False)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)
