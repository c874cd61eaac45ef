"""Files that are encrypted in pieces, so that they are written and read in little memory, and from any place.

    MAGIC, then pieces: nonce (12) | ciphertext of `PIECE` bytes, of the last one as many as are left | tag (16)

AES-256-GCM with random nonces. A piece's number and whether it is the last are associated data beside the file's
context: pieces that were changed, exchanged, cut off, added or brought over from another file don't open. (The idea is
the STREAM construction of Hoang, Reyhanitabar, Rogaway and Vizár, https://eprint.iacr.org/2015/189, which makes its
nonces of number and mark; ours are random, for a key seals many files.)
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from cryptography.exceptions import InvalidTag

from wootz.core import ConfigError
from wootz.store.secrets.envelope import NONCE_BYTES, decrypt, encrypt

MAGIC = b"\x93wootz1\n"
"""What begins with it is no text: neither ASCII nor UTF-8."""
PIECE = 64 * 1024
EXTRA = NONCE_BYTES + 16
"""Bytes that a piece takes besides its content."""


class DamagedFile(ConfigError):
    """It is not what was written."""


def write_sealed(path: Path, key: bytes, context: bytes, content: Iterable[bytes]) -> int:
    """A new file, on the disk when it returns; one that is there is written anew. Returns the content's bytes."""
    with open(path, "wb") as file:
        file.write(MAGIC)
        held, number, size = bytearray(), 0, 0
        for part in content:
            held += part
            size += len(part)
            at = 0
            with memoryview(held) as whole:
                while len(whole) - at > PIECE:  # The last piece has to be known as that, so a full one is held back.
                    with whole[at : at + PIECE] as piece:
                        file.write(encrypt(key, piece, _bound(context, number, last=False)))
                    at, number = at + PIECE, number + 1
            del held[:at]
        file.write(encrypt(key, bytes(held), _bound(context, number, last=True)))
        file.flush()
        os.fsync(file.fileno())
    return size


def is_sealed(file: BinaryIO) -> bool:
    """It is read from its beginning, and is there again afterwards."""
    begins = file.read(len(MAGIC))
    file.seek(0)
    return begins == MAGIC


class SealedFile(io.RawIOBase):
    """The content of what `write_sealed` wrote, to be read from any place; ``size`` is its bytes. It takes ``file``
    over, and closes it.

    Raises `DamagedFile` for what is not that: when it is opened for a file whose end is not its own, when it is read
    for a piece.
    """

    def __init__(self, file: BinaryIO, key: bytes, context: bytes) -> None:
        super().__init__()
        self._file, self._key, self._context = file, key, context
        sealed = file.seek(0, io.SEEK_END) - len(MAGIC)
        self._last = max(sealed - 1, 0) // (PIECE + EXTRA)
        self._place, self._number, self._piece = 0, -1, b""
        try:
            if sealed < EXTRA:
                raise _damaged()
            self.size = self._last * PIECE + len(self._open(self._last))
        except DamagedFile:
            self.close()
            raise

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self.size}[whence])
        return self._place

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        if self._place >= self.size:
            return 0
        number, at = divmod(self._place, PIECE)
        part = self._open(number)[at : at + len(buffer)]
        buffer[: len(part)] = part
        self._place += len(part)
        return len(part)

    def close(self) -> None:
        self._file.close()
        super().close()

    def _open(self, number: int) -> bytes:
        if number != self._number:
            self._file.seek(len(MAGIC) + number * (PIECE + EXTRA))
            sealed = self._file.read(PIECE + EXTRA)
            try:
                self._piece = decrypt(self._key, sealed, _bound(self._context, number, last=number == self._last))
            except (InvalidTag, ValueError):
                raise _damaged() from None
            self._number = number
        return self._piece


def _damaged() -> DamagedFile:
    return DamagedFile(
        "it is not what was stored under this id", hint="it was changed or cut, or another's was put there"
    )


def _bound(context: bytes, number: int, *, last: bool) -> bytes:
    return context + number.to_bytes(8, "big") + bytes([last])
