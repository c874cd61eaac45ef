"""A run on disk: its settings and its rows, one JSON line each, so that a killed run goes on where it stopped.

``run.json`` holds the settings and is written once; ``rows.jsonl`` only grows. A kill may leave a torn last line:
opening cuts it off, and that row is computed anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wootz.core import BadRequestError, ConfigError


class Journal:
    """Opens the run in ``folder``, or begins it there. ``rows`` are those that are done, by their ``id``.

    Raises `BadRequestError` when the folder holds a run with other settings: their scores must not be mixed.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))  # Tuples are lists once they were on disk.
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._agree()
            self.rows = self._read()
            self._file = (folder / "rows.jsonl").open("a", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{error.filename or folder} can't be used: {error.strerror}") from None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, row: dict[str, Any]) -> None:
        """Keep a row for good: it survives the end of this process, however sudden."""
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()
        self.rows[row["id"]] = row

    def _agree(self) -> None:
        file = self.folder / "run.json"
        if not file.exists():
            part = file.with_suffix(".part")
            part.write_text(json.dumps(self.settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            part.rename(file)
            return
        try:
            kept = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            raise BadRequestError(f"{file} is no run of ours", hint="give another folder") from None
        names = sorted(set(kept) | set(self.settings))
        changed = [name for name in names if kept.get(name) != self.settings.get(name)]
        if changed:
            raise BadRequestError(
                f"{self.folder} holds a run with other settings ({', '.join(changed)})", hint="give another folder"
            )

    def _read(self) -> dict[str, dict[str, Any]]:
        file = self.folder / "rows.jsonl"
        if not file.exists():
            return {}
        raw = file.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            with file.open("r+b") as torn:
                torn.truncate(len(whole))
        try:
            rows = [json.loads(line) for line in whole.splitlines()]
            return {row["id"]: row for row in rows}
        except (ValueError, TypeError, KeyError):
            raise BadRequestError(f"{file} is damaged", hint="remove it, or give another folder") from None
