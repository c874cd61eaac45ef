"""Secrets by reference: config holds ``env:NAME``, ``file:PATH``, ``store:NAME``, ``vault:PATH#KEY``, ``aws:NAME``,
never the value.

A reference is resolved where it is used. The environment and files are read here; the stores lie a floor higher
(`wootz.store.secrets`), so whoever starts a process hands in how one is opened (`use_stores`). They are opened when the
first reference asks for them: a setup without them pays nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from wootz.core.errors import ConfigError

SECRET_SCHEMES = ("env:", "file:", "store:", "vault:", "aws:")


@dataclass(frozen=True)
class Secret:
    """A value, and which version of the secret it is where there are versions."""

    value: str = field(repr=False)
    version: int | None = None


class SecretSource(Protocol):
    """A place with versioned secrets. Blocks; raises `ConfigError` that names the secret, never the value."""

    def current(self, name: str) -> Secret: ...

    def count_uses(self, name: str, uses: Mapping[int, int], used_by: str) -> None:
        """Write down that each version was used so many times until now."""
        ...


_open_source: Callable[[str], SecretSource] | None = None
_opened: dict[str, SecretSource] = {}


def use_stores(open_source: Callable[[str], SecretSource] | None) -> None:
    """From now on ``store``, ``vault`` and ``aws`` references of this process are asked of what this opens."""
    global _open_source
    _open_source = open_source
    _opened.clear()


def source_of(reference: str, *, used_by: str) -> SecretSource | None:
    """The store that a reference points into; None for the environment, files, and what is no reference."""
    scheme = reference.partition(":")[0]
    if scheme not in ("store", "vault", "aws"):
        return None
    if scheme not in _opened:
        if _open_source is None:
            raise ConfigError(f'{used_by}: secret "{reference}": no "{scheme}" secret store is set up')
        _opened[scheme] = _open_source(scheme)
    return _opened[scheme]


def resolve_secret(reference: str, *, used_by: str) -> str:
    """The value behind a reference; anything that is no reference is returned as it is.

    Raises `ConfigError` naming the reference and what uses it, never the value.
    """
    return read_secret(reference, used_by=used_by).value


def read_secret(reference: str, *, used_by: str) -> Secret:
    """The same with its version."""
    if not reference.startswith(SECRET_SCHEMES):
        return Secret(reference)
    scheme, _, name = reference.partition(":")
    secret = Secret("")
    if scheme == "env":
        secret = Secret(os.environ.get(name, ""))
    elif scheme == "file":
        try:
            secret = Secret(Path(name).expanduser().read_text().strip())
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not text"
            raise ConfigError(f'{used_by}: secret "{reference}" can\'t be read ({reason})') from None
    elif source := source_of(reference, used_by=used_by):
        try:
            secret = source.current(name)
        except ConfigError as error:
            hint = error.hint
            raise ConfigError(f'{used_by}: secret "{reference}": {error.message}', code=error.code, hint=hint) from None
    if not secret.value:
        raise ConfigError(f'{used_by}: secret "{reference}" is not set')
    return secret
