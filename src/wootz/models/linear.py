"""`Linear`, the one seam for weights.

Every projection of every model goes through this class, so how a weight is kept (dense, packed for the CPU, in the
blocks of a GGUF file, and later sharded or with an adapter on top) is decided here and nowhere else.

On a CPU, plain ``F.linear`` slows down when there are several tokens, but not many.
`Linear.prepare_for_inference` lays the weight out once in oneDNN's blocked order (the same primitive TorchInductor
uses when it freezes a model) and gives the plain copy back.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wootz.models.block_weight import BlockWeight


class Linear(nn.Module):
    """``y = x W^T + b`` with W of shape ``(out_features, in_features)``, as in `torch.nn.Linear`.

    Several projections of one input may share a `Linear`, one below the other (query, key, value; gate, up): fewer,
    larger products. The caller splits the output.
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight: Tensor = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self._packed: Tensor | None = None
        self._blocks: BlockWeight | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self._blocks is not None:
            y = self._blocks.multiply(x)
            return y if self.bias is None else y + self.bias
        if self._packed is not None:
            return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)

    def hold_blocks(self, blocks: BlockWeight) -> None:
        """Compute with a quantised weight from now on; ``weight`` becomes None. Such a model can only be run."""
        self._blocks = blocks
        self.register_parameter("weight", None)

    def prepare_for_inference(self) -> None:
        """Pack the weight if this device and dtype gain from it; otherwise change nothing. There is no way back.

        The plain weight is let go (``weight`` becomes None), and freed unless something else reads it too, as the
        embedding does a tied head's.
        """
        if self._blocks is not None:
            return
        weight = self.weight.detach()
        if weight.device.type != "cpu" or weight.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
            return
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        self.register_parameter("weight", None)

    def extra_repr(self) -> str:
        kept = f", {self._blocks.format}" if self._blocks else ", packed" if self._packed is not None else ""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}{kept}"
