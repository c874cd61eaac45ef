"""Records that the database would not take, in files until it does: an outage loses no charge.

A file a group, written whole and synced, deleted when its rows are in. Whoever finds one may write its rows (another
process, or the next start): a row that is there already is left as it is, so none is counted twice.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from uuid import uuid4

import msgspec

from wootz.core.atomic import atomic_file
from wootz.telemetry.record import RequestRecord

log = logging.getLogger(__name__)


class Spool:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, records: Sequence[RequestRecord]) -> None:
        """Durable when it returns. Raises `ConfigError` where the folder can't be written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.folder / f"{uuid4().hex}.jsonl") as file:
            file.writelines(msgspec.json.encode(record) + b"\n" for record in records)

    def groups(self) -> Iterator[tuple[Path, list[RequestRecord]]]:
        """What is kept, a file at a time; delete the file when its rows are in."""
        for file in sorted(self.folder.glob("[!.]*.jsonl")):
            try:
                lines = file.read_bytes().splitlines()
                yield file, [msgspec.json.decode(line, type=RequestRecord) for line in lines]
            except FileNotFoundError:
                continue  # Another process was faster.
            except (OSError, msgspec.MsgspecError) as error:
                log.error("ledger: %s can't be read, its rows are missing: %s", file, error)
