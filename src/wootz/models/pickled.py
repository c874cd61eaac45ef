"""Weights in a pickle (``pytorch_model.bin``): read without running anything that the file says.

A pickle is a program. PyTorch's ``weights_only`` reader knows tensors and containers and refuses the rest, so a file
that holds anything else is refused, in one line.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import KeysView
from pathlib import Path

import torch
from torch import Tensor

from wootz.core.errors import ModelFileError


class PickledShard:
    """One file, with the two methods of an opened safetensors file. Its tensors are mapped from disk, not read."""

    def __init__(self, file: Path) -> None:
        self._tensors = load_pickle(file)

    def keys(self) -> KeysView[str]:
        return self._tensors.keys()

    def get_tensor(self, name: str) -> Tensor:
        return self._tensors[name]


def load_pickle(file: Path) -> dict[str, Tensor]:
    """The tensors of a state dict. Raises `ModelFileError` for a file that holds more, or that is damaged."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickle protocols; what it cannot read, it refuses
            try:
                content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # the format before PyTorch 1.6 cannot be mapped
                content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ModelFileError(
            f"{file}: this pickle holds more than weights, which could run code when it is opened, or is damaged",
            hint="use a copy in safetensors format",
        ) from None
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelFileError(f"{file}: damaged pickle ({reason})", hint="use a copy in safetensors format") from None
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise ModelFileError(f"{file}: not a state dict (tensors by name)", hint="use a copy in safetensors format")
    return content
