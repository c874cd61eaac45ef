"""What is being answered right now, in a file that outlives the process: a request that was accepted leaves a record
also when the server is killed in the middle of it.

Every process appends to a file of its own: a line when a request begins, one with its record when it ended, one when
the record is in the ledger. A line is handed to the kernel (no sync), so a killed process loses none. The file is
locked as long as its process lives; who finds one without a lock writes down what its process could not: the record of
what had ended, and, for what had not, one that says `KILLED`. Batch lines and tasks
are left out: another process goes on with them.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec

from wootz.core import UnavailableError, WootzError
from wootz.core.atomic import atomic_file
from wootz.telemetry.ledger import Ledger
from wootz.telemetry.record import RequestRecord

log = logging.getLogger(__name__)

KILLED = "process_killed"
"""The error code of a request whose server was killed."""
LONGEST_BYTES = 4 * 2**20
"""Of a file; then a new one is begun, with what is under way."""
LOOK_SECONDS = 5.0

Owed = Sequence[Any]
"""What the limits are to be told of a request that ended; they know what it means."""
Settle = Callable[[Owed], Awaitable[None]]


class Line(msgspec.Struct, array_like=True, omit_defaults=True):
    id: str
    record: RequestRecord | None = None
    """None: it is in the ledger."""
    ended: bool = False
    owed: list[Any] | None = None


_ENCODE = msgspec.json.Encoder().encode


class UnderWay:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: int | None = None
        self._path = folder
        self._live: dict[str, bytes] = {}
        self._bytes = 0

    def begin(self, record: RequestRecord) -> None:
        self._write(record.request_id, Line(record.request_id, record))

    def ended(self, record: RequestRecord, owed: Owed | None) -> bool:
        """Its record is about to be kept, and what it owes to be settled. False: the file does not have it."""
        if record.request_id not in self._live:
            return False
        return self._write(record.request_id, Line(record.request_id, record, True, list(owed) if owed else None))

    def kept(self, id: str) -> None:
        """Its record is in the ledger."""
        if id in self._live:
            self._append(_ENCODE(Line(id)) + b"\n")
            del self._live[id]
            if self._bytes > LONGEST_BYTES:
                self.close()

    def close(self) -> None:
        """The file goes when nothing is under way; else what is goes into a new one."""
        if self._file is None:
            return
        old, path, self._file = self._file, self._path, None
        for line in self._live.values():
            self._append(line)
        path.unlink(missing_ok=True)
        os.close(old)

    async def recover(self, ledger: Ledger, settle: Settle | None) -> int:
        """Write down what processes that are gone had under way; how many requests that were. What can't be written
        now, as a database is away, waits for the next time; what never can is in the log, and keeps no other."""
        number = 0
        for file, lines in self._orphans():
            left = list(lines)
            try:
                while left:
                    left[0] = await _settled(left[0], settle)
                    number += await _is_recorded(left[0], ledger)
                    left.pop(0)
            except UnavailableError as error:
                log.warning("ledger: what was under way in a process that was killed waits: %s", error)
                break
            finally:
                if left != lines or not left:
                    _leave(file, left)
        if number:
            log.warning("ledger: %d requests were under way in a process that was killed; they are recorded", number)
        return number

    async def recover_for_ever(self, ledger: Ledger, settle: Settle | None) -> None:
        """Another process that shares the folder may be killed at any time."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.recover(ledger, settle)

    def _orphans(self) -> Iterator[tuple[Path, list[Line]]]:
        """Files of processes that are gone, each locked by us while it is read."""
        for path in sorted(self.folder.glob("[!.]*.jsonl")):
            try:
                file = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                continue
            except OSError as error:
                log.error("ledger: %s can't be read: %s", path, error)
                continue
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.exists():
                    yield path, list(_unkept(path.read_bytes()))
            except BlockingIOError:
                continue  # Its process lives, or another one reads it.
            except OSError as error:
                log.error("ledger: %s can't be read: %s", path, error)
            finally:
                os.close(file)

    def _write(self, id: str, line: Line) -> bool:
        self._live[id] = encoded = _ENCODE(line) + b"\n"
        return self._append(encoded)

    def _append(self, lines: bytes) -> bool:
        """A disk that takes no more stops nobody: then this file is as good as it can be."""
        try:
            if self._file is None:
                self._file = self._begin_file()
            written = os.write(self._file, lines)
        except OSError as error:
            log.error("ledger: %s can't be written (%s)", self._path, error.strerror)
            return False
        self._bytes += written
        return written == len(lines)

    def _begin_file(self) -> int:
        """Under a hidden name until it is locked, so that nobody takes it for an orphan."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._path, self._bytes = self.folder / f"{uuid4().hex}.jsonl", 0
        hidden = self._path.with_name(f".{self._path.name}")
        file = os.open(hidden, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
        hidden.rename(self._path)
        return file


async def _settled(line: Line, settle: Settle | None) -> Line:
    """Nothing is settled twice: the line that is left owes no more."""
    if line.owed is None or settle is None:
        return line
    try:
        await settle(line.owed)
    except UnavailableError:
        raise
    except Exception:
        log.exception("ledger: what the request %s owes can't be settled: %s", line.id, line.owed)
    return msgspec.structs.replace(line, owed=None)


async def _is_recorded(line: Line, ledger: Ledger) -> bool:
    try:
        await ledger.write(_last_word(line))
    except UnavailableError:
        raise
    except Exception:
        log.exception("ledger: the request %s can't be recorded: %s", line.id, line.record)
        return False
    return True


def _leave(file: Path, lines: Sequence[Line]) -> None:
    """The orphan with only these lines. A file that can't be changed stays: its rows are known by their ids."""
    try:
        if lines:
            with atomic_file(file) as stream:
                stream.writelines(_ENCODE(line) + b"\n" for line in lines)
        else:
            file.unlink(missing_ok=True)
    except (OSError, WootzError) as error:
        log.error("ledger: %s can't be changed: %s", file, error)


def _last_word(line: Line) -> RequestRecord:
    assert line.record is not None
    return line.record if line.ended else msgspec.structs.replace(line.record, status=500, error_code=KILLED)


def _unkept(content: bytes) -> Iterator[Line]:
    lines: dict[str, Line] = {}
    for raw in content.splitlines():
        try:
            line = msgspec.json.decode(raw, type=Line)
        except msgspec.MsgspecError:
            continue  # The last one, cut.
        if line.record is None:
            lines.pop(line.id, None)
        else:
            lines[line.id] = line
    yield from lines.values()
