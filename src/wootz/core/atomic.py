"""Files and folders that are there as a whole or not at all.

What is being written has a hidden name of its own beside the target and takes the target's name when it is complete
and on the disk. Whatever ends the writing earlier (an error, Ctrl-C) removes it; only a crash of the machine or a kill
leaves it behind, under a name that nobody reads.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from wootz.core.errors import ConfigError


@contextmanager
def atomic_file(path: Path | str) -> Iterator[BinaryIO]:
    """Write the file in the block; it replaces ``path`` when the block ends well. Raises `ConfigError` if it cannot."""
    path = Path(path)
    partial = _hidden(path)
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path | str, *, replace_if: str | None = None) -> Iterator[Path]:
    """Fill the folder that the block is given; it becomes ``path`` when the block ends well.

    A folder that holds something is never replaced, unless it holds a file named ``replace_if``, by which the caller
    knows it as one of its own making. Raises `ConfigError` otherwise, or if the folder cannot be written.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path}: exists and is not a folder")
    occupied = path.is_dir() and any(path.iterdir())
    if occupied and not (replace_if and (path / replace_if).exists()):
        raise ConfigError(f"{path}: is not empty", hint="choose another folder or remove it first")
    partial, old = _hidden(path), _hidden(path)
    try:
        partial.mkdir(parents=True)
        yield partial
        for file in partial.rglob("*"):
            sync(file)
        if path.is_dir():
            os.rename(path, old)
        os.rename(partial, path)
        sync(path.parent)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        if old.exists() and not path.exists():
            os.rename(old, path)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _hidden(path: Path) -> Path:
    return path.absolute().with_name(f".{path.absolute().name}.{uuid4().hex[:12]}.partial")


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
