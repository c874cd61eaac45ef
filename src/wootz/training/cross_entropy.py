"""`sliced_language_loss`: what a language model is trained by, without ever holding all logits.

Logits are the largest tensor of a small model's step: N tokens times V words, and autograd keeps them, their softmax
and their gradient. But the gradient of the loss by the logits is known as soon as they are (softmax minus the label's
one), so a slice of tokens can be unembedded, turned into its share of the gradients of states and of the head, and
forgotten. The products are the same, only three passes over ``(N, V)`` and most of the memory are gone (the idea of
Liger Kernel's and Apple's fused losses, arXiv 2410.10989, 2411.09009, here with nothing but matrix products).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from wootz.data.batch import IGNORED, Batch
from wootz.kernels import training as kernels
from wootz.models import Decoder, PackedContext

SLICE_BYTES = 16_000_000
"""Of logits held at once: what caches and allocators like."""


def sliced_language_loss(model: Decoder, batch: Batch) -> Tensor:
    """Mean cross-entropy, in nats, over the labels that are asked: `language_loss`, but differentiable only once."""
    hidden_TD = model(batch.tokens_BT.flatten(), batch.positions_T, PackedContext(batch.lengths))
    labels_T = batch.labels_BT.flatten()
    asked_T = labels_T != IGNORED
    if not bool(asked_T.all()):
        hidden_TD, labels_T = hidden_TD[asked_T], labels_T[asked_T]
    if torch.is_grad_enabled() and _is_one_product(model) and not _is_float16(hidden_TD.device.type):
        return sliced_cross_entropy(hidden_TD, model.head.weight, labels_T)
    return F.cross_entropy(model.unembed(hidden_TD), labels_T)


def _is_float16(device: str) -> bool:
    """Slices make gradients before the loss is scaled, and in float16 small ones would be zero by then."""
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16


def _is_one_product(model: Decoder) -> bool:
    """Whether logits are states times a plain matrix, and nothing else."""
    config, head = model.config, model.head
    bare = config.logit_scale == 1.0 and config.logit_softcap is None and not config.head_bias
    return bare and head.adapters is None and type(head.weight) in (Tensor, nn.Parameter)


def sliced_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor) -> Tensor:
    """``F.cross_entropy(hidden_ND @ weight_VD.T, labels_N)`` with its gradients, a slice of tokens at a time. Products
    are made in autocast's dtype where it holds; sums in float32 at least."""
    is_fused = len(hidden_ND) > 0 and kernels.serves(hidden_ND, weight_VD)
    function = _FusedSlicedCrossEntropy if is_fused else _SlicedCrossEntropy
    return function.apply(hidden_ND, weight_VD, labels_N)  # pyright: ignore[reportReturnType]


class _SlicedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor) -> Tensor:
        device = hidden_ND.device.type
        product = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_ND.dtype
        exact = torch.promote_types(product, torch.float32)
        num_tokens, (vocab_size, _) = len(hidden_ND), weight_VD.shape
        size = max(1, SLICE_BYTES // (4 * vocab_size))
        weight = weight_VD.to(product)
        grad_hidden_ND = torch.empty_like(hidden_ND)
        grad_weight_VD = torch.zeros(weight_VD.shape, dtype=exact, device=weight_VD.device)
        total = torch.zeros((), dtype=exact, device=hidden_ND.device)
        with torch.autocast(device, enabled=False):
            for start in range(0, num_tokens, size):
                hidden = hidden_ND[start : start + size].to(product)
                labels = labels_N[start : start + size, None]
                logits = (hidden @ weight.T).to(exact)
                logsumexp = logits.logsumexp(-1, keepdim=True)
                total += (logsumexp - logits.gather(1, labels)).sum()
                logits.sub_(logsumexp).exp_()  # now probabilities, soon the loss's gradient by the logits
                logits.scatter_add_(1, labels, torch.full_like(labels, -1, dtype=exact)).div_(num_tokens)
                grad = logits.to(product)
                grad_hidden_ND[start : start + size] = grad @ weight
                if exact == product:
                    grad_weight_VD.addmm_(grad.T, hidden)
                else:
                    grad_weight_VD += grad.T @ hidden
        ctx.save_for_backward(grad_hidden_ND, grad_weight_VD.to(weight_VD.dtype))
        return total / num_tokens

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_hidden_ND, grad_weight_VD = ctx.saved_tensors
        return grad_hidden_ND * grad.to(grad_hidden_ND.dtype), grad_weight_VD * grad.to(grad_weight_VD.dtype), None


class _FusedSlicedCrossEntropy(_SlicedCrossEntropy):
    """The same in float32 on a CPU, where what is between products is one kernel."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor) -> Tensor:
        num_tokens, (vocab_size, _) = len(hidden_ND), weight_VD.shape
        size = max(1, SLICE_BYTES // (4 * vocab_size))
        grad_hidden_ND, grad_weight_VD = hidden_ND.new_empty(hidden_ND.shape), weight_VD.new_empty(weight_VD.shape)
        logits_NV, total = hidden_ND.new_empty(min(size, num_tokens), vocab_size), 0.0
        for start in range(0, num_tokens, size):
            hidden, labels = hidden_ND[start : start + size], labels_N[start : start + size]
            grad = kernels.product(hidden, weight_VD.T, logits_NV[: len(hidden)])
            total += kernels.cross_entropy_(grad, labels, num_tokens)
            kernels.product(grad, weight_VD, grad_hidden_ND[start : start + size])
            kernels.product(grad.T, hidden, grad_weight_VD, adds=start > 0)
        ctx.save_for_backward(grad_hidden_ND, grad_weight_VD)
        return hidden_ND.new_tensor(total / num_tokens)
