"""`Linear`, the one seam for weights.

Every projection of every model goes through this class, so how a weight is kept (dense, packed for the CPU, in the
blocks of a GGUF file, sharded, with adapters on top) is decided here and nowhere else.

On a CPU, plain ``F.linear`` slows down when there are several tokens, but not many.
`Linear.prepare_for_inference` lays the weight out once in oneDNN's blocked order (the same primitive TorchInductor
uses when it freezes a model) and gives the plain copy back.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wootz import kernels
from wootz.core.errors import UnsupportedError
from wootz.kernels import training
from wootz.kernels.packing import PackedMatrix
from wootz.models.adapters.low_rank import LinearAdapters
from wootz.models.quantized_weight import Multiplies


class Linear(nn.Module):
    """``y = x W^T + b`` with W of shape ``(out_features, in_features)``, as in `torch.nn.Linear`.

    Several projections of one input may share a `Linear`, one below the other (query, key, value; gate, up): fewer,
    larger products. Then ``out_features`` is the tuple of their sizes, ``parts``, and the caller splits the output.
    ``into_residual`` marks what adds to the residual stream, which starts smaller in deep models.
    """

    def __init__(
        self, in_features: int, out_features: int | tuple[int, ...], *, bias: bool = False, into_residual: bool = False
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.parts = (out_features,) if isinstance(out_features, int) else out_features
        self.out_features = sum(self.parts)
        self.into_residual = into_residual
        self.weight: Tensor = nn.Parameter(torch.empty(self.out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(self.out_features)) if bias else None
        if not self.weight.is_meta:
            nn.init.normal_(self.weight, std=0.02)
        self._packed: Tensor | None = None
        self.blocks: Multiplies | None = None
        self.adapters: LinearAdapters | None = None
        """What adapters add to the product, for the rows that have one; see `wootz.models.adapters`."""

    def forward(self, x: Tensor) -> Tensor:
        y = self._product(x)
        return y if self.adapters is None else self.adapters(x, y)

    def _product(self, x: Tensor) -> Tensor:
        if self.blocks is not None:
            y = self.blocks.multiply(x)
            return y if self.bias is None else y + self.bias
        if self._packed is not None:
            return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        if training.serves(x, self.weight):
            return training.linear(x, self.weight, self.bias)
        return F.linear(x, self.weight, self.bias)

    def hold_blocks(self, blocks: Multiplies) -> None:
        """Compute with a quantised weight from now on; ``weight`` becomes None. Such a model can only be run."""
        self.blocks = blocks
        self.register_parameter("weight", None)

    def prepare_for_inference(self) -> None:
        """Pack the weight if this device and dtype gain from it; otherwise change nothing. There is no way back.

        The plain weight is let go (``weight`` becomes None), and freed unless something else reads it too, as the
        embedding does a tied head's.
        """
        if self.blocks is not None or self._packed is not None:
            return
        weight = self.weight.detach()
        if weight.device.type != "cpu" or weight.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
            return
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        self.register_parameter("weight", None)

    def unpack(self) -> None:
        """Undo `prepare_for_inference`, so that the weight can be written to. Raises `UnsupportedError` for one that is
        kept quantised."""
        if self.blocks is not None:
            raise UnsupportedError("weights in quantised blocks cannot be replaced", hint="serve an unquantised model")
        if self._packed is not None:
            self.weight = nn.Parameter(self._packed.to_dense(), requires_grad=False)
            self._packed = None

    def discard(self) -> None:
        """Free a packed or quantised weight; what is left is the shape of a plain one."""
        if self._packed is not None or self.blocks is not None:
            dtype = torch.float32 if self.bias is None else self.bias.dtype
            plain = torch.empty(self.out_features, self.in_features, dtype=dtype, device="meta")
            self.weight, self._packed, self.blocks = nn.Parameter(plain, requires_grad=False), None, None

    def extra_repr(self) -> str:
        kept = f", {self.blocks.format}" if self.blocks else ", packed" if self._packed is not None else ""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}{kept}"


class Embedding(nn.Embedding):
    """A vector for each token. Like a `Linear` it can hold a packed weight, which it may share with the output head."""

    packed: PackedMatrix | None = None

    def forward(self, input: Tensor) -> Tensor:
        """``(T, D)`` for int64 token ids ``(T,)``."""
        if self.packed is not None:
            return kernels.unpacked_rows(self.packed, input)
        return super().forward(input)

    def hold_packed(self, packed: PackedMatrix) -> None:
        """Look vectors up in a packed weight from now on; ``weight`` becomes None."""
        self.packed = packed
        self.register_parameter("weight", None)

    def unpack(self) -> None:
        """Raises `UnsupportedError` for a weight that is kept quantised (`Linear.unpack`)."""
        if self.packed is not None:
            raise UnsupportedError("a quantised embedding cannot be replaced", hint="serve an unquantised model")

    def discard(self) -> None:
        """Free a packed weight; what is left is the shape of a plain one."""
        if self.packed is not None:
            self.packed = None
            self.weight = nn.Parameter(torch.empty(self.num_embeddings, self.embedding_dim, device="meta"), False)


def prepare_for_inference(model: nn.Module) -> None:
    """No gradients, and every `Linear` laid out for speed."""
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, Linear):
            module.prepare_for_inference()
