"""A training step on a CPU, forward and backward: products, attention, RMSNorm, gated activations, rotary positions and
the loss, as operations of autograd over the kernels beside this file (`training.h`).

Two thirds of such a step are products, and PyTorch's library reaches three fifths of what some processors can do; most
of the rest is passes over memory between them, which are fewer here. Callers ask `serves` and keep to PyTorch's own
operations otherwise, which are what the kernels are tested against, and what a gradient of a gradient is made with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from wootz import kernels
from wootz.kernels import ACTIVATIONS


def _native() -> Any:
    assert kernels._native is not None
    return kernels._native


FEWEST_ROWS = 64
"""Below it the copies that a product makes of its operands cost more than it saves."""


def serves(*tensors: Tensor) -> bool:
    """Whether the operations of this module are to be used for these: plain float32 on a CPU, being trained."""
    return (
        kernels.AVAILABLE
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and all(type(x) in _PLAIN and x.dtype == torch.float32 and x.device.type == "cpu" for x in tensors)
    )


_PLAIN = (Tensor, nn.Parameter)
"""A sharded tensor, say, sees to its operations itself."""


def product(a_MK: Tensor, b_KN: Tensor, out_MN: Tensor, *, adds: bool = False) -> Tensor:
    """``out = a b``, or ``out += a b``. Operands may lie as they like, be transposed, say; rows of ``out`` may not."""
    native = _native()
    (rows, depth), columns = a_MK.shape, b_KN.shape[1]
    _check(depth == b_KN.shape[0], a_MK, b_KN)
    _check(out_MN.shape == (rows, columns) and out_MN.stride(1) == 1, out_MN)
    sides = [(x.data_ptr(), *x.stride()) for x in (a_MK, b_KN)]
    threads = torch.get_num_threads()
    native.product((rows, columns, depth), *sides, out_MN.data_ptr(), out_MN.stride(0), adds, threads)
    return out_MN


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """`F.linear`."""
    x_NI = x.reshape(-1, x.shape[-1])
    if len(x_NI) < FEWEST_ROWS:
        return F.linear(x, weight_OI, bias_O)
    y_NO = _Linear.apply(x_NI, weight_OI)
    assert isinstance(y_NO, Tensor)
    y = y_NO.view(*x.shape[:-1], len(weight_OI))
    return y if bias_O is None else y + bias_O


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor) -> Tensor:
        ctx.save_for_backward(x_NI, weight_OI)
        return product(x_NI, weight_OI.T, x_NI.new_empty(len(x_NI), len(weight_OI)))

    @staticmethod
    def backward(ctx: Any, grad_NO: Tensor) -> Sequence[Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_NI, weight_OI = ctx.saved_tensors
        if torch.is_grad_enabled():
            return tuple(_differentiable(F.linear, ctx, (x_NI, weight_OI), grad_NO))
        of_x, of_weight = ctx.needs_input_grad
        dx_NI = product(grad_NO, weight_OI, x_NI.new_empty(x_NI.shape)) if of_x else None
        return dx_NI, product(grad_NO.T, x_NI, weight_OI.new_empty(weight_OI.shape)) if of_weight else None


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """`F.rms_norm` over the last dimension."""
    return _Norm.apply(x, weight_D, eps)  # pyright: ignore[reportReturnType]


class _Norm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        native = _native()
        x, weight_D = x.contiguous(), weight_D.contiguous()
        size = len(weight_D)
        _check(x.shape[-1] == size, x, weight_D)
        y, inverse_N = torch.empty_like(x), x.new_empty(x.numel() // size)
        norm = weight_D.data_ptr(), eps
        threads = torch.get_num_threads()
        native.norm(x.data_ptr(), norm, len(inverse_N), size, y.data_ptr(), inverse_N.data_ptr(), threads)
        ctx.save_for_backward(x, weight_D, inverse_N)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        native = _native()
        x, weight_D, inverse_N = ctx.saved_tensors
        if torch.is_grad_enabled():
            plain = lambda x, weight_D: F.rms_norm(x, weight_D.shape, weight_D, ctx.eps)  # noqa: E731
            return *_differentiable(plain, ctx, (x, weight_D), grad), None
        grad, dx, dweight_D = grad.contiguous(), torch.empty_like(x), torch.empty_like(weight_D)
        native.norm_backward(
            x.data_ptr(),
            weight_D.data_ptr(),
            inverse_N.data_ptr(),
            grad.data_ptr(),
            len(inverse_N),
            len(weight_D),
            dx.data_ptr(),
            dweight_D.data_ptr(),
            torch.get_num_threads(),
        )
        return dx, dweight_D, None


def gated(gate_up: Tensor, activation: str) -> Tensor:
    """``act(gate) * up`` of both side by side in the last dimension, gates first (`ACTIVATIONS`)."""
    return _Gated.apply(gate_up, ACTIVATIONS[activation])  # pyright: ignore[reportReturnType]


def _plain_gated(gate_up: Tensor, gate: int) -> Tensor:
    gates, up = gate_up.chunk(2, dim=-1)
    return (F.silu(gates) if gate == ACTIVATIONS["silu"] else F.gelu(gates, approximate="tanh")) * up


class _Gated(Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, gate: int) -> Tensor:
        native = _native()
        gate_up = gate_up.contiguous()
        ctx.save_for_backward(gate_up)
        ctx.gate = gate
        width = gate_up.shape[-1] // 2
        y = gate_up.new_empty(*gate_up.shape[:-1], width)
        native.gated(gate, gate_up.data_ptr(), y.numel() // width, width, y.data_ptr(), torch.get_num_threads())
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        native = _native()
        (gate_up,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_differentiable(lambda x: _plain_gated(x, ctx.gate), ctx, (gate_up,), grad), None
        grad, out = grad.contiguous(), torch.empty_like(gate_up)
        width, threads = grad.shape[-1], torch.get_num_threads()
        rows = grad.numel() // width
        native.gated_backward(ctx.gate, gate_up.data_ptr(), grad.data_ptr(), rows, width, out.data_ptr(), threads)
        return out, None


def can_take_heads(*tensors_THd: Tensor) -> bool:
    """Whether each token's heads lie one behind the other, as in the output of a projection and in parts of it."""
    return all(x.dim() == 3 and x.stride()[1:] == (x.shape[2], 1) for x in tensors_THd)


def rotate(x_THd: Tensor, cos_Td: Tensor, sin_Td: Tensor) -> Tensor:
    """The first d dimensions of every head turned, i with ``i + d/2``; the signs of "rotate half" are in ``sin``."""
    return _Rotate.apply(x_THd, cos_Td, sin_Td, False)  # pyright: ignore[reportReturnType]


class _Rotate(Function):
    @staticmethod
    def forward(ctx: Any, x_THd: Tensor, cos_Td: Tensor, sin_Td: Tensor, back: bool) -> Tensor:
        native = _native()
        _check(cos_Td.shape == sin_Td.shape and len(cos_Td) == len(x_THd), x_THd, cos_Td, sin_Td)
        cos_Td, sin_Td = cos_Td.contiguous(), sin_Td.contiguous()
        ctx.angles, ctx.back = (cos_Td, sin_Td), back
        y_THd = x_THd.new_empty(x_THd.shape)
        angles = cos_Td.data_ptr(), sin_Td.data_ptr(), cos_Td.shape[1]
        x, sizes = _heads(x_THd), (x_THd.shape[0], x_THd.shape[1], x_THd.shape[2])
        native.rotate(x, sizes, angles, back, y_THd.data_ptr(), torch.get_num_threads())
        return y_THd

    @staticmethod
    def backward(ctx: Any, grad_THd: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_THd = grad_THd if can_take_heads(grad_THd) else grad_THd.contiguous()
        return _Rotate.apply(grad_THd, *ctx.angles, not ctx.back), None, None, None  # pyright: ignore[reportReturnType]


def can_attend(q_THd: Tensor, k_TKd: Tensor, v_TKe: Tensor) -> bool:
    same = q_THd.shape[2] == k_TKd.shape[2] == v_TKe.shape[2] and k_TKd.shape[1] == v_TKe.shape[1]
    return same and can_take_heads(q_THd, k_TKd, v_TKe) and serves(q_THd, k_TKd, v_TKe)


def packed_attention(q_THd: Tensor, k_TKd: Tensor, v_TKd: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
    """``(T, H, d)``: causal attention inside each of the documents of ``lengths`` tokens, which lie end to end."""
    return _Attention.apply(q_THd, k_TKd, v_TKd, list(lengths), scale)  # pyright: ignore[reportReturnType]


def _plain_attention(q_THd: Tensor, k_TKd: Tensor, v_TKd: Tensor, lengths: list[int], scale: float) -> Tensor:
    group, pieces = q_THd.shape[1] // k_TKd.shape[1], []
    k_THd, v_THd = (x.repeat_interleave(group, dim=1) for x in (k_TKd, v_TKd))
    for q, k, v in zip(*(x.split(lengths) for x in (q_THd, k_THd, v_THd)), strict=True):
        scores_HQL = torch.einsum("qhd,lhd->hql", q, k) * scale
        future_QL = torch.ones(scores_HQL.shape[1:], dtype=torch.bool).triu(1)
        pieces.append(torch.einsum("hql,lhd->qhd", scores_HQL.masked_fill(future_QL, -torch.inf).softmax(-1), v))
    return torch.cat(pieces)


class _Attention(Function):
    @staticmethod
    def forward(ctx: Any, q_THd: Tensor, k_TKd: Tensor, v_TKd: Tensor, lengths: list[int], scale: float) -> Tensor:
        native = _native()
        same = k_TKd.shape == v_TKd.shape and q_THd.shape[2] == k_TKd.shape[2]
        _check(same and can_take_heads(q_THd, k_TKd, v_TKd), q_THd, k_TKd, v_TKd)
        _check(sum(lengths) == len(q_THd) == len(k_TKd), q_THd, k_TKd)
        out_THd = q_THd.new_empty(q_THd.shape)
        logsumexp_TH = q_THd.new_empty(q_THd.shape[:2])
        ctx.save_for_backward(q_THd, k_TKd, v_TKd, out_THd, logsumexp_TH)
        ctx.sizes, ctx.lengths, ctx.scale = (q_THd.shape[1], k_TKd.shape[1], q_THd.shape[2]), lengths, scale
        parts = [_heads(x) for x in (q_THd, k_TKd, v_TKd, out_THd)]
        native.packed_attention(lengths, ctx.sizes, scale, parts, logsumexp_TH.data_ptr(), torch.get_num_threads())
        return out_THd

    @staticmethod
    def backward(ctx: Any, grad_THd: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        native = _native()
        *inputs, out_THd, logsumexp_TH = ctx.saved_tensors
        if torch.is_grad_enabled():
            plain = lambda q, k, v: _plain_attention(q, k, v, ctx.lengths, ctx.scale)  # noqa: E731
            return *_differentiable(plain, ctx, inputs, grad_THd), None, None
        grad_THd = grad_THd if can_take_heads(grad_THd) else grad_THd.contiguous()
        outputs = [x.new_empty(x.shape) for x in inputs]
        parts = [_heads(x) for x in (*inputs, out_THd)]
        grads = [_heads(x) for x in (grad_THd, *outputs)]
        logsumexp, threads = logsumexp_TH.data_ptr(), torch.get_num_threads()
        native.packed_attention_backward(ctx.lengths, ctx.sizes, ctx.scale, parts, logsumexp, grads, threads)
        return *outputs, None, None


def cross_entropy_(logits_NV: Tensor, labels_N: Tensor, of: int) -> float:
    """The sum of the rows' losses, in nats. ``logits``, contiguous, become the gradient of a mean of ``of`` of them."""
    native = _native()
    num_rows, vocab_size = logits_NV.shape
    _check(len(labels_N) == num_rows and logits_NV.is_contiguous(), logits_NV, labels_N)
    lowest, highest = labels_N.aminmax()
    if lowest < 0 or highest >= vocab_size:
        raise IndexError(f"labels from {lowest} to {highest} for a vocabulary of {vocab_size}")
    pointers = logits_NV.data_ptr(), labels_N.contiguous().data_ptr()
    return native.cross_entropy(*pointers, num_rows, vocab_size, of, torch.get_num_threads())


def _check(fits: bool, *tensors: Tensor) -> None:
    """The kernels trust what they are told: a wrong size would be another's memory."""
    if not fits:
        raise ValueError(f"sizes that do not fit: {', '.join(str(tuple(x.shape)) for x in tensors)}")


def _heads(x_THd: Tensor) -> tuple[int, int]:
    return x_THd.data_ptr(), x_THd.stride(0)


def _differentiable(
    plain: Callable[..., Tensor], ctx: Any, inputs: Sequence[Tensor], grad: Tensor
) -> list[Tensor | None]:
    """The gradients of ``plain`` by its inputs, as something that has gradients itself."""
    needed = ctx.needs_input_grad[: len(inputs)]
    asked = [x for x, is_needed in zip(inputs, needed, strict=True) if is_needed]
    grads = iter(torch.autograd.grad(plain(*inputs), asked, grad, create_graph=True))
    return [next(grads) if is_needed else None for is_needed in needed]
