"""AdamW with its two averages in 8 bits each, block by block (arXiv 2110.02861).

Each block of `block_size` values is divided by its largest magnitude and rounded to the nearest of 256 levels that are
dense where values are small ("dynamic tree" levels: decades from 1e-7 to 1, and within each decade the more levels the
higher it is). A step opens a parameter's averages to float32, makes AdamW's update with them, and closes them again,
so no step divides by a rounded average. 2 bytes per parameter and 8 per block, in place of 8 per parameter.
Parameters of fewer than `smallest` values stay in float32, as in bitsandbytes.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from wootz.core.errors import UnsupportedError
from wootz.training.optimizers.base import ElementwiseOptimizer, state_dtype, zeros_for

_DECADES = 7


class AdamW8bit(ElementwiseOptimizer):
    def __init__(
        self,
        params: Any,
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        block_size: int = 256,
        smallest: int = 4096,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "block_size": block_size, "smallest": smallest})

    def update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        if isinstance(parameter, DTensor):
            raise UnsupportedError("8-bit AdamW cannot keep the state of sharded parameters", hint="use adamw")
        if not state:
            state["step"] = 0
            for name, signed in (("first", True), ("second", False)):
                self._close(state, name, zeros_for(parameter), signed, group)
        state["step"] += 1
        first = self._open(state, "first", parameter, True, group)
        second = self._open(state, "second", parameter, False, group)
        beta1, beta2 = group["betas"]
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        denominator = (second / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(first / denominator, alpha=group["lr"] / (1 - beta1 ** state["step"]))
        self._close(state, "first", first, True, group)
        self._close(state, "second", second, False, group)

    @staticmethod
    def _close(state: dict[str, Any], name: str, value: Tensor, signed: bool, group: dict[str, Any]) -> None:
        if value.numel() < group["smallest"]:
            state[name] = value
        else:
            state[f"{name}_codes"], state[f"{name}_scales"] = quantize(value, signed, group["block_size"])

    @staticmethod
    def _open(state: dict[str, Any], name: str, parameter: Tensor, signed: bool, group: dict[str, Any]) -> Tensor:
        if name in state:
            return state[name]
        codes, scales = state[f"{name}_codes"], state[f"{name}_scales"]
        return dequantize(codes, scales, signed, group["block_size"]).view(parameter.shape).to(state_dtype(parameter))


def quantize(value: Tensor, signed: bool, block_size: int) -> tuple[Tensor, Tensor]:
    """Codes (uint8, one for each value, flat) and scales (float32, one for each block; the last block may be short)."""
    flat = value.flatten().float()
    num_blocks = -(-len(flat) // block_size)
    blocks = torch.nn.functional.pad(flat, (0, num_blocks * block_size - len(flat))).view(num_blocks, block_size)
    scales = blocks.abs().amax(1)
    shares = blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    levels = _levels(signed).to(flat.device)
    codes = torch.bucketize(shares, (levels[1:] + levels[:-1]) / 2).to(torch.uint8)
    return codes.flatten()[: len(flat)], scales


def dequantize(codes: Tensor, scales: Tensor, signed: bool, block_size: int) -> Tensor:
    """Flat, float32."""
    values = _levels(signed).to(codes.device)[codes.int()]
    return values * scales.repeat_interleave(block_size)[: len(codes)]


@cache
def _levels(signed: bool) -> Tensor:
    """256 of them, ascending: 0, 1, and in decade i from below the middles of 2^i (unsigned: 2^(i+1)) equal parts."""
    positive = []
    for decade in range(_DECADES):
        edges = torch.linspace(0.1, 1, 2 ** (decade + (0 if signed else 1)) + 1, dtype=torch.float64)
        positive.append((edges[1:] + edges[:-1]) / 2 * 10.0 ** (decade + 1 - _DECADES))
    levels = torch.cat([*positive, *([-part for part in positive] if signed else []), torch.tensor([0.0, 1.0])])
    return levels.sort().values.float()
