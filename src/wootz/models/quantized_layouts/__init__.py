"""How quantised weights lie in the folders that the field exchanges, read and written.

A quantised projection ``q_proj`` has no ``q_proj.weight`` of floats but a few tensors of its own: packed integers,
scales, zero points. What they are called and how they are packed is a *layout*, named in the ``quantization_config`` of
``config.json``:

- `gptq`: AutoGPTQ's and GPTQModel's, 2, 3, 4 and 8 bits, with and without activation order;
- `awq`: AutoAWQ's "gemm", 4 bits;
- `compressed_tensors`: pack-, int-, float- and naive-quantized, as vLLM and llm-compressor write them;
- `bitsandbytes`: LLM.int8();
- `block_fp8`: DeepSeek-V3's blocks of E4M3.

A layout turns a projection's tensors into a `QuantizedWeight`, ``(out, in)``, and back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from wootz.models.quantized_weight import QuantizedWeight


class Layout(Protocol):
    @property
    def marker(self) -> str:
        """The ending of the one tensor by which a quantised projection is known."""
        ...

    @property
    def endings(self) -> tuple[str, ...]:
        """Of all tensors that such a projection may have."""
        ...

    def read(self, module: str, tensors: Mapping[str, Tensor]) -> QuantizedWeight:
        """``module`` is the projection's name, ``tensors`` those that it has, by ending. Raises ValueError or
        RuntimeError where their shapes do not fit each other."""
        ...

    def write(self, weight: QuantizedWeight) -> dict[str, Tensor]:
        """By ending. Raises ValueError for a weight that the layout has no place for."""
        ...

    def config(self, kept: list[str]) -> dict[str, Any]:
        """The ``quantization_config`` to write; ``kept`` names the projections that are not quantised."""
        ...


def layout_of(config: Mapping[str, Any]) -> Layout:
    """What a ``quantization_config`` describes. ValueError: cannot be read, KeyError for what it lacks."""
    from wootz.models.quantized_layouts.awq import AWQLayout
    from wootz.models.quantized_layouts.bitsandbytes import BitsAndBytesLayout
    from wootz.models.quantized_layouts.block_fp8 import BlockFP8Layout
    from wootz.models.quantized_layouts.compressed_tensors import CompressedTensorsLayout
    from wootz.models.quantized_layouts.gptq import GPTQLayout

    match config.get("quant_method"):
        case "gptq":
            return GPTQLayout.of_config(config)
        case "awq":
            return AWQLayout.of_config(config)
        case "compressed-tensors":
            return CompressedTensorsLayout.of_config(config)
        case "bitsandbytes":
            return BitsAndBytesLayout.of_config(config)
        case "fp8":
            return BlockFP8Layout.of_config(config)
        case other:
            known = "gptq, awq, compressed-tensors, bitsandbytes (int8), fp8 and mxfp4"
            raise ValueError(f'its weights are quantised as "{other}", which is not supported ({known} are)')
