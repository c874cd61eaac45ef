"""Layers that a run has finished, kept beside its target until it is complete: a run that was killed goes on there.

A layer depends on the source, the settings, the texts, and the layers before it. So what is kept says of which run it
is (`Run`), and another run, be it of one setting more, begins anew. Going on costs what the texts' way through the
finished layers costs; the folder that comes out is the same to the last bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wootz.core.errors import ConfigError
from wootz.models.quantized_weight import Float8Weight, IntWeight, QuantizedWeight
from wootz.models.rounded_inputs import RoundedInputs

_VERSION = 1
"""Of what is kept. Bump it when a method computes something else."""


@dataclass
class FinishedLayer:
    weights: dict[str, QuantizedWeight] = field(default_factory=dict)
    """By checkpoint module."""
    others: dict[str, Tensor] = field(default_factory=dict)
    """What else the layer has (norms, biases, routers), as folding has left it."""
    errors: dict[str, float] = field(default_factory=dict)
    rarely_used: dict[str, int] = field(default_factory=dict)


class Run:
    """One run's finished layers, in ``.NAME.unfinished`` beside the target."""

    def __init__(self, target: Path, **determines: Any) -> None:
        """``determines`` is all that the layers depend on, for JSON."""
        self.folder = target.absolute().with_name(f".{target.absolute().name}.unfinished")
        identity = json.dumps({"version": _VERSION, **determines}, sort_keys=True, default=str)
        said = self.folder / "run.json"
        try:
            if self.folder.exists() and not (said.exists() and said.read_text() == identity):
                shutil.rmtree(self.folder)
            if not self.folder.exists():
                self.folder.mkdir(parents=True)
                _replace(said, lambda file: file.write_text(identity))
        except OSError as error:
            raise ConfigError(f"{self.folder}: cannot be written ({error.strerror or error})") from None

    def layer(self, number: int) -> FinishedLayer | None:
        file = self._file(number)
        if not file.exists():
            return None
        with torch.serialization.safe_globals([IntWeight, Float8Weight, RoundedInputs]):
            return FinishedLayer(**torch.load(file, weights_only=True))

    def keep(self, number: int, layer: FinishedLayer) -> None:
        _replace(self._file(number), lambda file: torch.save(vars(layer), file))

    def forget(self) -> None:
        """The target is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, number: int) -> Path:
        return self.folder / f"layer-{number}.pt"


def _replace(file: Path, write: Callable[[Path], object]) -> None:
    """As a whole or not at all, even if the process is killed."""
    partial = file.with_suffix(f".{os.getpid()}.partial")
    write(partial)
    os.replace(partial, file)


def described_source(source: Path) -> dict[str, Any]:
    """Enough to notice that it is another one now."""
    files = sorted(path for path in source.iterdir() if path.is_file()) if source.is_dir() else [source]
    stats = {file.name: (file.stat().st_size, file.stat().st_mtime_ns) for file in files}
    return {"path": str(source.absolute()), "files": stats}


def described_texts(texts: Sequence[Sequence[int]]) -> str:
    return hashlib.sha256(json.dumps([[*text] for text in texts]).encode()).hexdigest()
