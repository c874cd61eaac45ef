"""GPU kernels, in Triton: what a decoding step spends its time on beside PyTorch's matrix products.

- `attention`: causal attention over the paged cache, for one token of many sequences and for chunks of prompts;
- `rope`: positions turned, and keys and values put into their blocks;
- `norms`: RMSNorm with the sum before it; `activations`: the gated MLP's product;
- `int4`, `float8`: a few tokens times a weight that stays in four bits or in E4M3.

PyTorch stays the oracle. Triton comes with PyTorch's builds for GPUs; where it is missing `AVAILABLE` is False and
callers keep to PyTorch. Without a device the kernels can be *interpreted*, operation by operation in NumPy, if
``TRITON_INTERPRET=1`` was set before Triton was imported. That is what the tests do, and it is far too slow for
anything else: so on a CPU nothing uses them outside of `on_cpu`.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

AVAILABLE = importlib.util.find_spec("triton") is not None

INTERPRETED = AVAILABLE and os.environ.get("TRITON_INTERPRET") == "1"

_on_cpu = False


def serves(device: torch.device) -> bool:
    """Whether callers are to use these kernels for tensors on this device."""
    return AVAILABLE and (_on_cpu if device.type == "cpu" else device.type == "cuda" and not INTERPRETED)


@contextmanager
def on_cpu() -> Iterator[None]:
    """In this block the kernels serve CPU tensors, interpreted. For tests."""
    global _on_cpu
    if not INTERPRETED:
        raise RuntimeError("Triton was not imported with TRITON_INTERPRET=1")
    _on_cpu = True
    try:
        yield
    finally:
        _on_cpu = False
