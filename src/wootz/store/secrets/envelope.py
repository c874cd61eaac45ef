"""Envelope encryption: each version has a data key of its own, and only the master key opens data keys.

AES-256-GCM (NIST SP 800-38D) through the ``cryptography`` package. The secret's name and version are associated data of
both layers: a row that was copied over another one no longer opens. The master key comes from a file that only its
owner may read, from the environment, or stays in a key service, which then is asked to unwrap.
"""

from __future__ import annotations

import base64
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from wootz.core import ConfigError, resolve_secret

KEY_BYTES, NONCE_BYTES = 32, 12


class KeyWrapper(Protocol):
    """What a key service offers: to lock a data key up, and to unlock it for who may. ``context`` binds the two."""

    def wrap(self, data_key: bytes, context: bytes) -> bytes: ...

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Raises `ConfigError` when the master key is another one, or decrypting is not permitted."""
        ...


@dataclass(frozen=True)
class Sealed:
    """What lies on the disk of one value. ``ciphertext`` begins with its nonce."""

    ciphertext: bytes
    wrapped_key: bytes


def seal(value: str, context: bytes, wrapper: KeyWrapper) -> Sealed:
    data_key = AESGCM.generate_key(8 * KEY_BYTES)
    return Sealed(encrypt(data_key, value.encode(), context), wrapper.wrap(data_key, context))


def unseal(sealed: Sealed, context: bytes, wrapper: KeyWrapper) -> str:
    """Raises `ConfigError` for a row that was changed or moved, or a master key that is not its own."""
    data_key = wrapper.unwrap(sealed.wrapped_key, context)
    try:
        return decrypt(data_key, sealed.ciphertext, context).decode()
    except InvalidTag:
        raise ConfigError("its row in the store was changed", hint="restore secrets.db, or set it again") from None


def rewrapped(wrapped: bytes, context: bytes, new: KeyWrapper, old: KeyWrapper) -> bytes | None:
    """A data key that ``old`` locked, locked by ``new``; None where ``new`` opens it as it is.

    Raises `ConfigError` where neither opens it.
    """
    try:
        new.unwrap(wrapped, context)
    except ConfigError:
        return new.wrap(old.unwrap(wrapped, context), context)
    return None


class MasterKey:
    """A `KeyWrapper` with the key at hand."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def wrap(self, data_key: bytes, context: bytes) -> bytes:
        return encrypt(self._key, data_key, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        try:
            return decrypt(self._key, wrapped, context)
        except InvalidTag:
            raise ConfigError(
                "the master key does not open it", hint="give the key it was written with (secrets.master_key)"
            ) from None


def master_key(reference: str) -> MasterKey:
    """From ``file:PATH``, ``env:NAME``, or Vault's or AWS' secret: 32 bytes in base64."""
    if reference.startswith("file:"):
        path = Path(reference.removeprefix("file:")).expanduser()
        # Kubernetes mounts a secret as root's and lets a pod read it by its group.
        by_group = path.exists() and path.stat().st_uid == 0 and os.geteuid() != 0
        if path.exists() and path.stat().st_mode & (0o037 if by_group else 0o077):
            raise ConfigError(f"the master key {path} can be read by others", hint=f"chmod 600 {path}")
    try:
        key = base64.b64decode(resolve_secret(reference, used_by="secrets.master_key"), validate=True)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigError(
            f"secrets.master_key: {reference} does not hold {KEY_BYTES} bytes in base64",
            hint="make one with: openssl rand -base64 32",
        )
    return MasterKey(key)


def make_master_key(path: Path) -> None:
    """A new one at ``path``, for its owner alone; one that is there already stays."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    made = path.with_name(f"{path.name}.{os.urandom(8).hex()}")
    try:
        with os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(base64.b64encode(os.urandom(KEY_BYTES)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(made, path)  # As a whole: another process that starts now may look for it.
    finally:
        made.unlink(missing_ok=True)


def encrypt(key: bytes, plain: bytes | memoryview, context: bytes) -> bytes:
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plain, context)


def decrypt(key: bytes, sealed: bytes, context: bytes) -> bytes:
    return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], context)
