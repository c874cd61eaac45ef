"""Projections that a model computes in one product (query, key, value; gate, up), as parameters of their own.

A rank's share of ``[q; k; v]`` under tensor parallelism is a share of each, which is not a range of rows; and a
checkpoint that is to be read by any number of ranks needs tensors that are cut in one place. So a model that trains
on many ranks holds them apart, under ``qkv.0``, ``qkv.1``, …, as torchtitan and Megatron-Core's checkpoints do. One
process may do so too, to read such a checkpoint; `put_together` undoes it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wootz.models.blocks.attention import Attention
from wootz.models.blocks.mlp import GatedMLP
from wootz.models.decoder import Decoder
from wootz.models.linear import Linear


class TakenApart(nn.ModuleList):
    """Called like the `Linear` whose parts it holds."""

    def forward(self, x_TD: Tensor) -> Tensor:
        return torch.cat([part(x_TD) for part in self], -1)


def take_apart(model: Decoder) -> None:
    """Every attention's and gated MLP's fused projection, in place."""
    for module in list(model.modules()):
        match module:
            case Attention(qkv=Linear() as qkv) if not module.config.qkv_by_group:
                module.qkv = _parts(qkv)  # pyright: ignore[reportAttributeAccessIssue]
            case GatedMLP(gate_up=Linear() as gate_up):
                module.gate_up = _parts(gate_up)  # pyright: ignore[reportAttributeAccessIssue]


def put_together(model: Decoder) -> None:
    """Undo `take_apart` on a model whose weights are plain tensors."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, TakenApart):
                setattr(module, name, _whole(list(child)))  # pyright: ignore[reportArgumentType]


def is_apart(model: nn.Module) -> bool:
    return any(isinstance(module, TakenApart) for module in model.modules())


def _parts(whole: Linear) -> TakenApart:
    biases = [None] * len(whole.parts) if whole.bias is None else whole.bias.detach().split(whole.parts)
    parts = []
    for weight, bias in zip(whole.weight.detach().split(whole.parts), biases, strict=True):
        with torch.device("meta"):
            part = Linear(whole.in_features, len(weight), bias=bias is not None, into_residual=whole.into_residual)
        part.weight = nn.Parameter(weight.clone())
        if bias is not None:
            part.bias = nn.Parameter(bias.clone())
        parts.append(part)
    return TakenApart(parts)


def _whole(parts: list[Linear]) -> Linear:
    with torch.device("meta"):
        whole = Linear(parts[0].in_features, tuple(part.out_features for part in parts), bias=parts[0].bias is not None)
    whole.weight = nn.Parameter(torch.cat([part.weight.detach() for part in parts]))
    biases = [part.bias.detach() for part in parts if part.bias is not None]
    if biases:
        whole.bias = nn.Parameter(torch.cat(biases))
    return whole
