"""Secrets by reference: config holds ``env:NAME`` or ``file:PATH``, resolved where it is used, never the value."""

from __future__ import annotations

import os
from pathlib import Path

from wootz.core.errors import ConfigError

SECRET_SCHEMES = ("env:", "file:", "store:", "vault:")


def resolve_secret(reference: str, *, used_by: str) -> str:
    """The value behind a reference; anything that is no reference is returned as it is.

    Raises `ConfigError` naming the reference and what uses it, never the value. ``store:`` and ``vault:`` have
    no backend yet and are refused.
    """
    if not reference.startswith(SECRET_SCHEMES):
        return reference
    scheme, _, name = reference.partition(":")
    if scheme == "env":
        value = os.environ.get(name, "")
    elif scheme == "file":
        try:
            value = Path(name).expanduser().read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not text"
            raise ConfigError(f'{used_by}: secret "{reference}" can\'t be read ({reason})') from None
    else:
        raise ConfigError(f'{used_by}: secret "{reference}": no "{scheme}" secret store is set up')
    if not value:
        raise ConfigError(f'{used_by}: secret "{reference}" is not set')
    return value
