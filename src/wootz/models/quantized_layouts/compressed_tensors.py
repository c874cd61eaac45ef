"""The layouts of the compressed-tensors package (``quant_method`` "compressed-tensors"), which vLLM reads.

    pack-quantized   weight_packed int32 (O, I * b / 32), weight_scale (O, G), weight_shape;
                     weight_zero_point int32 (O * b / 32, G) if there are zeros, weight_g_idx if groups have no order
    int-quantized    weight int8 (O, I), weight_scale (O, 1)
    float-quantized  weight E4M3 (O, I), weight_scale (O, 1) or (1,); input_scale (1,) if it is static

Packed numbers are offset to be positive. ``config_groups`` say which projections have which scheme: bits and groups of
the weights, and how inputs are rounded, if they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wootz.models.quantized_layouts.packing import pack, unpack
from wootz.models.quantized_weight import FLOAT8, Float8Weight, IntWeight, QuantizedWeight
from wootz.models.rounded_inputs import RoundedInputs

_MIDDLE = 128
_FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")


@dataclass(frozen=True)
class Scheme:
    """One of the config groups. ``targets`` are names, regular expressions after "re:", or "Linear" for all."""

    weights: Mapping[str, Any]
    inputs: Mapping[str, Any] | None = None
    targets: tuple[str, ...] = ("Linear",)
    format: str = "pack-quantized"

    def fits(self, module: str) -> bool:
        return any(
            bool(re.match(target[3:], module)) if target.startswith("re:") else target in ("Linear", module)
            for target in self.targets
        )


@dataclass(frozen=True)
class CompressedTensorsLayout:
    schemes: tuple[Scheme, ...]
    marker = ".weight_scale"
    endings = (
        ".weight",
        ".weight_packed",
        ".weight_scale",
        ".weight_shape",
        ".weight_zero_point",
        ".weight_g_idx",
        ".input_scale",
        ".input_zero_point",
    )

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> CompressedTensorsLayout:
        if (status := config.get("quantization_status", "compressed")) != "compressed":
            raise ValueError(f'compressed-tensors with the status "{status}" are not supported ("compressed" are)')
        found = []
        for group in config["config_groups"].values():
            format = group.get("format") or config["format"]
            weights, inputs = group["weights"], group.get("input_activations")
            _check(format, weights, inputs)
            found.append(Scheme(weights, inputs, tuple(group["targets"]), format))
        # A name is more particular than a pattern, and that than all.
        found.sort(key=lambda scheme: "Linear" in scheme.targets)
        return cls(tuple(found))

    def read(self, module: str, tensors: Mapping[str, Tensor]) -> QuantizedWeight:
        scheme = next((scheme for scheme in self.schemes if scheme.fits(module)), None)
        if scheme is None:
            raise ValueError("no config group names it")
        weight = _read_weight(scheme, tensors)
        if not scheme.inputs:
            return weight
        dtype = torch.int8 if scheme.inputs["type"] == "int" else FLOAT8
        static = None if scheme.inputs.get("dynamic") else tensors[".input_scale"].float().view(-1)
        group = scheme.inputs.get("group_size") if scheme.inputs.get("strategy") == "group" else None
        return RoundedInputs(weight, dtype, static, group)

    def write(self, weight: QuantizedWeight) -> dict[str, Tensor]:
        inner = weight.weight if isinstance(weight, RoundedInputs) else weight
        tensors = _write_weight(self.schemes[0], inner)
        if isinstance(weight, RoundedInputs) and weight.input_scale is not None:
            tensors[".input_scale"] = weight.input_scale.view(1)
        return tensors

    def config(self, kept: list[str]) -> dict[str, Any]:
        groups = {
            f"group_{number}": {
                "targets": [*scheme.targets],
                "weights": dict(scheme.weights),
                "input_activations": scheme.inputs and dict(scheme.inputs),
                "output_activations": None,
                "format": scheme.format,
            }
            for number, scheme in enumerate(self.schemes)
        }
        return {
            "quant_method": "compressed-tensors",
            "format": self.schemes[0].format,
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": kept,
            "kv_cache_scheme": None,
        }


def integers(bits: int, group_size: int | None, *, round_inputs: bool = False) -> CompressedTensorsLayout:
    """Symmetric integers, packed; or as they are, with inputs rounded to eight bits token by token (W8A8)."""
    by = {"strategy": "channel"} if group_size is None else {"strategy": "group", "group_size": group_size}
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "dynamic": False, **by}
    inputs = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": True, "strategy": "token"}
    if round_inputs:
        return CompressedTensorsLayout((Scheme(weights, inputs, format="int-quantized"),))
    return CompressedTensorsLayout((Scheme(weights),))


def floats(*, static: bool) -> CompressedTensorsLayout:
    """E4M3: by row and token, or with one scale for each tensor, inputs included."""
    kind = {"num_bits": 8, "type": "float", "symmetric": True}
    weights = kind | {"dynamic": False, "strategy": "tensor" if static else "channel"}
    inputs = kind | {"dynamic": not static, "strategy": "tensor" if static else "token"}
    return CompressedTensorsLayout((Scheme(weights, inputs, format="float-quantized"),))


def _check(format: str, weights: Mapping[str, Any], inputs: Mapping[str, Any] | None) -> None:
    if format not in _FORMATS:
        raise ValueError(f'compressed-tensors in the format "{format}" is not supported ({", ".join(_FORMATS)} are)')
    kind, bits, strategy = weights["type"], weights["num_bits"], weights.get("strategy", "tensor")
    known = 1 <= bits <= 8 if kind == "int" else (kind, bits) == ("float", 8)
    if not known or strategy not in ("tensor", "channel", "group", "block"):
        raise ValueError(f'compressed-tensors of {bits} bits in {kind} by "{strategy}" are not supported')
    if inputs and (inputs["num_bits"] != 8 or not inputs.get("symmetric", True)):
        raise ValueError("activations are supported in eight bits around zero only")
    if inputs and inputs.get("dynamic") not in (True, False, None):
        raise ValueError(f'activations with "{inputs["dynamic"]}" scales are not supported')


def _read_weight(scheme: Scheme, tensors: Mapping[str, Tensor]) -> QuantizedWeight:
    bits, scale = scheme.weights["num_bits"], tensors[".weight_scale"]
    if scheme.weights["type"] == "float":
        block = scheme.weights.get("block_structure")
        weight = tensors[".weight"]
        by_row = scale if block else scale.view(-1, 1).expand(len(weight), 1).contiguous()
        return Float8Weight(weight.view(FLOAT8), by_row, tuple(block) if block else None)
    if ".weight_packed" in tensors:
        rows, columns = tensors[".weight_shape"].tolist()
        levels_OI = unpack(tensors[".weight_packed"], bits, columns)
    else:
        weight = tensors[".weight"]
        rows, columns = weight.shape
        bits, levels_OI = 8, (weight.to(torch.int16) + _MIDDLE).to(torch.uint8)
    scale = scale.view(-1, 1).expand(rows, 1).contiguous() if scale.ndim < 2 or len(scale) == 1 else scale
    zero = tensors.get(".weight_zero_point")
    if zero is not None and not scheme.weights.get("symmetric", True):
        packed = zero.dtype == torch.int32
        zero = unpack(zero.T, bits, rows).T.contiguous() if packed else (zero.short() + _MIDDLE).to(torch.uint8)
        zero = zero.view(scale.shape)
    else:
        zero = None
    if len(levels_OI) != rows or len(scale) != rows or columns % scale.shape[1]:
        raise ValueError(f"weights {(rows, columns)} and scales {(*scale.shape,)} do not fit each other")
    group_of_I = tensors.get(".weight_g_idx")
    return IntWeight.of_levels(levels_OI, scale, bits, zero, None if group_of_I is None else group_of_I.long())


def _write_weight(scheme: Scheme, weight: QuantizedWeight) -> dict[str, Tensor]:
    if isinstance(weight, Float8Weight) and scheme.format == "float-quantized":
        one_for_all = scheme.weights["strategy"] == "tensor"
        return {".weight": weight.data, ".weight_scale": weight.scale[0].clone() if one_for_all else weight.scale}
    if not isinstance(weight, IntWeight):
        raise ValueError(f"{scheme.format} does not hold {weight.format}")
    if scheme.format == "int-quantized":
        return {".weight": (weight.data.to(torch.int16) - _MIDDLE).to(torch.int8), ".weight_scale": weight.scale}
    tensors = {
        ".weight_packed": pack(weight.levels_OI, weight.bits),
        ".weight_scale": weight.scale,
        ".weight_shape": torch.tensor(weight.shape),
    }
    if weight.zero is not None:
        tensors[".weight_zero_point"] = pack(weight.zero.T.contiguous(), weight.bits).T.contiguous()
    if weight.group_of_I is not None:
        tensors[".weight_g_idx"] = weight.group_of_I.to(torch.int32)
    return tensors
