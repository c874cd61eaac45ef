"""Floats into GGML's block formats: `quantize`, the way back from `wootz.models.dequantize`.

The plain formats round every weight to the nearest of the steps between its block's extremes. The K formats first
search, for each sub-block, the scale (and minimum) whose steps miss the weights by least, a large weight's miss
counting more; and then round those scales too, to the few bits that the block has for them.

The plain formats equal the `gguf` package's to the last bit. It has no K formats; ours are the search that llama.cpp
does (``ggml-quants.c``), with sums in another order: now and then another scale wins, with an error as small.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wootz.core.gguf import GGML_TYPES

_CHUNK_WEIGHTS = 1 << 16


def quantize(weights: Tensor, type_name: str) -> Tensor:
    """The bytes (uint8, ``(…, bytes per row)``) that hold float ``weights`` of shape ``(…, columns)``.

    Raises ValueError when a row is not whole blocks; see `WEIGHTS_PER_BLOCK`.
    """
    weights_per_block = WEIGHTS_PER_BLOCK[type_name]
    if weights.shape[-1] % weights_per_block:
        raise ValueError(f"rows of {weights.shape[-1]} weights are not whole {type_name} blocks of {weights_per_block}")
    blocks = weights.detach().reshape(-1, weights_per_block)
    # In chunks, so that what the search compares stays in the processor's cache.
    chunks = blocks.split(_CHUNK_WEIGHTS // weights_per_block)
    data = torch.cat([_FORMATS[type_name](chunk.float()) for chunk in chunks])
    return data.view(*weights.shape[:-1], -1)


def _f32(w: Tensor) -> Tensor:
    return w.contiguous().view(torch.uint8)


def _f16(w: Tensor) -> Tensor:
    return w.half().view(torch.uint8)


def _bf16(w: Tensor) -> Tensor:
    return w.bfloat16().view(torch.uint8)


def _q4_0(w: Tensor) -> Tensor:
    d, q = _around_zero(w, 16)
    return torch.cat((_half(d), _pack(q, 4, 16)), 1)


def _q4_1(w: Tensor) -> Tensor:
    d, m, q = _from_minimum(w, 16)
    return torch.cat((_half(d), _half(m), _pack(q, 4, 16)), 1)


def _q5_0(w: Tensor) -> Tensor:
    d, q = _around_zero(w, 32)
    return torch.cat((_half(d), _pack(q >> 4, 1, 1), _pack(q & 15, 4, 16)), 1)


def _q5_1(w: Tensor) -> Tensor:
    d, m, q = _from_minimum(w, 32)
    return torch.cat((_half(d), _half(m), _pack(q >> 4, 1, 1), _pack(q & 15, 4, 16)), 1)


def _q8_0(w: Tensor) -> Tensor:
    d = w.abs().amax(1, keepdim=True) / 127
    q = w * _inverse(d)
    q = q.trunc() + (2 * q.frac()).trunc()  # halves go away from zero
    return torch.cat((_half(d), q.to(torch.int8).view(torch.uint8)), 1)


def _q4_k(w: Tensor) -> Tensor:
    d, m, scales, q = _with_minimums(w, levels=16, first_stretch=-1.0, num_stretches=21)
    return torch.cat((_half(d), _half(m), scales, _pack(q, 4, 32)), 1)


def _q5_k(w: Tensor) -> Tensor:
    d, m, scales, q = _with_minimums(w, levels=32, first_stretch=-0.5, num_stretches=16)
    return torch.cat((_half(d), _half(m), scales, _pack(q >> 4, 1, 32), _pack(q & 15, 4, 32)), 1)


def _q6_k(w: Tensor) -> Tensor:
    w_NSn = w.unflatten(1, (16, 16))
    scale_NS = _best_scale(w_NSn, 32)
    extreme = scale_NS.gather(1, scale_NS.abs().argmax(1, keepdim=True))
    d = _as_half(extreme / -128)
    scale_q = (scale_NS * _inverse(extreme / -128)).round().clamp(-128, 127)
    step_NS1 = (d * scale_q).unsqueeze(2)
    q = ((w_NSn * _inverse(step_NS1)).round().clamp(-32, 31) + 32).to(torch.uint8).flatten(1)
    scales = scale_q.to(torch.int8).view(torch.uint8)
    return torch.cat((_pack(q & 15, 4, 64), _pack(q >> 4, 2, 32), scales, _half(d)), 1)


_FORMATS: dict[str, Callable[[Tensor], Tensor]] = {
    "F32": _f32,
    "F16": _f16,
    "BF16": _bf16,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}

WEIGHTS_PER_BLOCK = {name: weights for name, weights, _ in GGML_TYPES.values() if name in _FORMATS}
"""The formats that can be written, and how many weights share a block."""


def _around_zero(w: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """``d`` and q for ``w = d * (q - levels/2)``; the weight farthest from zero is met exactly, by the lowest level."""
    extreme = w.gather(1, w.abs().argmax(1, keepdim=True))
    d = extreme / -(levels // 2)
    return d, (w * _inverse(d) + (levels // 2 + 0.5)).to(torch.uint8).clamp(max=levels - 1)


def _from_minimum(w: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """``d``, ``m`` and q for ``w = d * q + m``."""
    m = w.amin(1, keepdim=True)
    d = (w.amax(1, keepdim=True) - m) / (levels - 1)
    return d, m, ((w - m) * _inverse(d) + 0.5).to(torch.uint8).clamp(max=levels - 1)


def _with_minimums(
    w: Tensor, *, levels: int, first_stretch: float, num_stretches: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``d``, ``m``, the packed 6-bit scales and q of a block with eight sub-blocks, ``w = d*scale * q - m*minimum``."""
    w_NSn = w.unflatten(1, (8, 32))
    scale, minimum = _best_scale_and_minimum(w_NSn, levels, first_stretch, num_stretches)
    d, scale = _six_bits(scale)
    m, minimum = _six_bits(minimum)
    step, shift = (d * scale).unsqueeze(2), (m * minimum).unsqueeze(2)
    q = ((w_NSn + shift) * _inverse(step)).round().clamp(0, levels - 1).to(torch.uint8).flatten(1)
    return d, m, _pack_six_bit_pairs(scale.to(torch.uint8), minimum.to(torch.uint8)), q


def _best_scale_and_minimum(
    w_NSn: Tensor, levels: int, first_stretch: float, num_stretches: int
) -> tuple[Tensor, Tensor]:
    """Of each sub-block, ``(N, S)``: the scale and the (positive) minimum with the least weighted squared error.

    Each try stretches the range from the best minimum so far upwards a little, rounds to its levels, and solves for the
    scale and minimum that fit these levels best (least squares).
    """
    importance = w_NSn.square().mean(2, keepdim=True).sqrt() + w_NSn.abs()
    weighted = importance * w_NSn
    sum_i, sum_w, high = importance.sum(2), weighted.sum(2), w_NSn.amax(2)

    def levels_of(low: Tensor, stretch: float) -> Tensor:
        per_step = (levels - 1 + stretch) * _inverse(high - low)
        return ((w_NSn - low.unsqueeze(2)) * per_step.unsqueeze(2)).round_().clamp_(0, levels - 1)

    def error(scale: Tensor, low: Tensor, q: Tensor) -> Tensor:
        return (scale.unsqueeze(2) * q + low.unsqueeze(2)).sub_(w_NSn).square_().mul_(importance).sum(2)

    best_low = w_NSn.amin(2).clamp(max=0)
    best_scale = (high - best_low) / (levels - 1)
    least = error(best_scale, best_low, levels_of(best_low, 0.0))
    for stretch in range(num_stretches):
        q = levels_of(best_low, first_stretch + 0.1 * stretch)
        importance_q = importance * q
        sum_q, sum_qq, sum_qw = importance_q.sum(2), (importance_q * q).sum(2), (weighted * q).sum(2)
        determinant = sum_i * sum_qq - sum_q.square()
        scale = (sum_i * sum_qw - sum_w * sum_q) / determinant
        low = (sum_qq * sum_w - sum_q * sum_qw) / determinant
        scale, low = torch.where(low > 0, sum_qw / sum_qq, scale), low.clamp(max=0)
        missed = error(scale, low, q)
        better = (determinant > 0) & (missed < least)
        best_scale = torch.where(better, scale, best_scale)
        best_low = torch.where(better, low, best_low)
        least = torch.where(better, missed, least)
    return best_scale, -best_low


def _best_scale(w_NSn: Tensor, half_levels: int) -> Tensor:
    """Of each sub-block, ``(N, S)``: the scale for ``w = scale * q``, q in [-half_levels, half_levels), likewise."""
    extreme = w_NSn.gather(2, w_NSn.abs().argmax(2, keepdim=True))
    importance = w_NSn.square()
    weighted = importance * w_NSn
    best_scale = best_fit = torch.zeros(w_NSn.shape[:2])
    for stretch in (0, *range(-9, 0), *range(1, 10)):
        per_step = -(half_levels + 0.1 * stretch) * _inverse(extreme)
        q = (w_NSn * per_step).round_().clamp_(-half_levels, half_levels - 1)
        sum_qw, sum_qq = (weighted * q).sum(2), (importance * q * q).sum(2)
        fit = sum_qw.square() / sum_qq
        better = (sum_qq > 0) & (fit > best_fit)
        best_scale = torch.where(better, sum_qw / sum_qq, best_scale)
        best_fit = torch.where(better, fit, best_fit)
    return best_scale


def _six_bits(scale_NS: Tensor) -> tuple[Tensor, Tensor]:
    """``(N, 1)`` and ``(N, S)``: positive scales as one float16 times integers below 64."""
    largest = scale_NS.amax(1, keepdim=True)
    return _as_half(largest / 63), (scale_NS * (63 * _inverse(largest))).round().clamp(max=63)


def _pack_six_bit_pairs(scale: Tensor, minimum: Tensor) -> Tensor:
    """Eight scales and eight minimums of 6 bits in 12 bytes; the last four of each have their top bits in the first."""
    (scale, last_scale), (minimum, last_minimum) = scale.split(4, 1), minimum.split(4, 1)
    both = last_scale & 15 | (last_minimum & 15) << 4
    return torch.cat((scale | last_scale >> 4 << 6, minimum | last_minimum >> 4 << 6, both), 1)


def _pack(q: Tensor, bits: int, run: int) -> Tensor:
    """Fields of ``bits`` bits into bytes: ``run`` fields lowest in their bytes, the next ``run`` above them, …."""
    fields = q.unflatten(1, (-1, 8 // bits, run))
    packed = torch.zeros_like(fields[:, :, 0])
    for place in range(8 // bits):
        packed |= fields[:, :, place] << place * bits
    return packed.flatten(1)


def _inverse(d: Tensor) -> Tensor:
    return torch.where(d == 0, 0, 1 / d)


def _half(scale: Tensor) -> Tensor:
    return scale.half().view(torch.uint8)


def _as_half(scale: Tensor) -> Tensor:
    """As it will be read back."""
    return scale.half().float()
