"""Weights that a folder keeps as several tensors: numbers of few bits, and the scales that give them their size.

Each scheme says by which names its parts are known (``x.weight`` and ``x.weight_scale_inv``), and has one function
that makes one weight of them, in float32. Which scheme a weight is in shows in what lies beside it, so in a folder of
several kinds each tensor is read by its own. Whether the whole folder is of a kind that we read is said in the
``quantization_config`` of its config, under ``METHODS``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from wootz.models.fp8_blocks import dequantize_fp8_blocks
from wootz.models.mxfp4 import dequantize_mxfp4


@dataclass(frozen=True)
class Scheme:
    whole: str
    """What the name of the weight ends with, …"""
    parts: tuple[str, ...]
    """… and what takes its place in the names of the parts."""
    dequantize: Callable[..., Tensor]
    """``(*parts, quantization_config)`` to the weight, as its family's checkpoints keep it without any scheme. Raises
    ValueError, with a message for the user, for parts that do not fit together."""


def _mxfp4(blocks: Tensor, scales: Tensor, settings: Mapping[str, Any]) -> Tensor:
    if blocks.ndim != 4 or blocks.shape[:-1] != scales.shape:
        raise ValueError(f"has blocks {(*blocks.shape,)}, but scales {(*scales.shape,)}")
    return dequantize_mxfp4(blocks, scales).transpose(1, 2)  # (E, out, in), where the same unpacked is (E, in, out)


def _fp8_blocks(weight: Tensor, scales: Tensor, settings: Mapping[str, Any]) -> Tensor:
    rows, columns = settings.get("weight_block_size") or (128, 128)
    return dequantize_fp8_blocks(weight, scales, (rows, columns))


SCHEMES = (
    Scheme("", ("_blocks", "_scales"), _mxfp4),
    Scheme(".weight", (".weight", ".weight_scale_inv"), _fp8_blocks),
)

METHODS = ("mxfp4", "fp8")
"""The ``quant_method`` of folders that we read."""


@dataclass(frozen=True)
class Split:
    """One weight that lies in parts."""

    scheme: Scheme
    names: tuple[str, ...]


def find_split(stored: Collection[str]) -> dict[str, Split]:
    """Of the tensors that a folder holds, those that are parts, by the name of the weight that they make."""
    found = {}
    for scheme in SCHEMES:
        last = scheme.parts[-1]
        for stem in (name.removesuffix(last) for name in stored if name.endswith(last)):
            names = tuple(stem + part for part in scheme.parts)
            if all(name in stored for name in names):
                found[stem + scheme.whole] = Split(scheme, names)
    return found


def refuse_unknown(settings: Mapping[str, Any]) -> None:
    """Raises ValueError, with a message for the user, where a ``quantization_config`` asks for what we have not."""
    if (method := settings.get("quant_method")) not in METHODS:
        known = ", ".join(METHODS)
        raise ValueError(f'its weights are quantised in a way that is not supported ("{method}"; {known} are)')
