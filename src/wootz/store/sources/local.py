"""Models that are already on this machine: ``file:PATH``, a folder in Hugging Face layout or a GGUF file.

The store keeps a copy of its own, never a hard link: a training run that saves over its file must not change
what is being served. Where the file system can share blocks between files (btrfs, XFS, bcachefs) the copy is a
reflink, which takes neither time nor space; elsewhere the bytes are copied.
"""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path

from wootz.core import NotFoundError, Progress
from wootz.store.inspect import weights_of
from wootz.store.sources import Fetched, Staging, is_model_file, no_model

FICLONE = 0x40049409
"""The ioctl behind ``cp --reflink`` (linux/fs.h)."""


def fetch(source: str, staging: Staging, progress: Progress) -> Fetched:
    path = Path(source.removeprefix("file:"))
    if not path.exists():
        raise NotFoundError(f'no file or folder "{path}"')
    weights = weights_of(path) if path.is_dir() else path
    files = [weights]
    if weights.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and is_model_file(file.name))
    if not any(file.suffix in (".gguf", ".safetensors") for file in files):
        raise no_model(source, [])
    total = sum(file.stat().st_size for file in files)
    progress.set_total(total)
    staging.keep_only(set())
    staging.need(total)
    for file in files:
        _copy(file, staging.files / file.name)
        progress.advance(file.stat().st_size)
    return Fetched(suggested_name=path.stem if path.is_file() else path.name)


def _copy(file: Path, to: Path) -> None:
    with file.open("rb") as source, to.open("wb") as target:
        try:
            fcntl.ioctl(target.fileno(), FICLONE, source.fileno())
        except OSError:
            shutil.copyfileobj(source, target, 2**20)
