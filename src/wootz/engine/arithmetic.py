"""How an engine computes, in one word: under which promise its log-probabilities stand (`docs/logprobs.md`).

- ``float32``, ``bfloat16``, …: those of the training forward in that precision;
- ``float32+quantized``: weights are quantised, and multiplied as what they stand for;
- ``float32+rounded``: inputs of products are rounded as well, so numbers are those of that rounding;
- then ``+int8-cache``, ``+fp8-cache`` or ``+int4-cache`` where keys and values are kept in codes.
"""

from __future__ import annotations

import torch
from torch import nn

from wootz.engine.kv_store import CacheFormat
from wootz.models.blocks.experts import GroupedLinear
from wootz.models.linear import Linear
from wootz.models.packed_weight import PackedWeight
from wootz.models.quantized_weight import Multiplies
from wootz.models.rounded_inputs import RoundedInputs


def arithmetic_of(model: object, dtype: torch.dtype, cache_format: CacheFormat) -> str | None:
    """``dtype`` is what the model computes in. None for a model whose weights lie in other processes."""
    if not isinstance(model, nn.Module):
        return None
    words = [str(dtype).removeprefix("torch.")]
    held: list[Multiplies] = []
    for module in model.modules():
        if isinstance(module, Linear) and module.blocks is not None:
            held.append(module.blocks)
        elif isinstance(module, GroupedLinear) and module.blocks is not None:
            held += module.blocks
    if any(isinstance(weight, PackedWeight | RoundedInputs) for weight in held):
        words.append("rounded")
    elif held:
        words.append("quantized")
    if not isinstance(cache_format, torch.dtype):
        words.append(f"{cache_format}-cache")
    return "+".join(words)
