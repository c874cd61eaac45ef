"""The generators of one process, as text that a checkpoint can hold: PyTorch's, per device, and Python's."""

from __future__ import annotations

import base64
import random
from typing import Any

import torch


def random_state() -> dict[str, Any]:
    version, numbers, gauss = random.getstate()
    generators = {"cpu": _text(torch.get_rng_state())}
    if torch.cuda.is_available():
        generators["cuda"] = _text(torch.cuda.get_rng_state())
    return {"torch": generators, "python": [version, list(numbers), gauss]}


def set_random_state(state: dict[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    torch.set_rng_state(_tensor(state["torch"]["cpu"]))
    if torch.cuda.is_available() and "cuda" in state["torch"]:
        torch.cuda.set_rng_state(_tensor(state["torch"]["cuda"]))


def _text(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
