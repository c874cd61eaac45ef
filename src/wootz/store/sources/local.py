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
    files = {weights.name: weights}
    if weights.is_dir():
        found = {file.relative_to(path).as_posix(): file for file in sorted(path.glob("**/*")) if file.is_file()}
        files = {name: file for name, file in found.items() if is_model_file(name)}
    if not any(file.suffix in (".gguf", ".safetensors") for file in files.values()):
        raise no_model(source, [])
    total = sum(file.stat().st_size for file in files.values())
    progress.set_total(total)
    staging.keep_only(set())
    staging.need(total)
    for name, file in files.items():
        _copy(file, staging.place(name))
        progress.advance(file.stat().st_size)
    return Fetched(suggested_name=path.stem if path.is_file() else path.name)


def _copy(file: Path, to: Path) -> None:
    with file.open("rb") as source, to.open("wb") as target:
        try:
            fcntl.ioctl(target.fileno(), FICLONE, source.fileno())
        except OSError:
            shutil.copyfileobj(source, target, 2**20)
