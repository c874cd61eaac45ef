"""Who acts: set by what let them in (a route, a page), read by what writes the audit log."""

from __future__ import annotations

import getpass
from contextvars import ContextVar

ACTOR: ContextVar[str] = ContextVar("who acts", default="")
"""The id of the key that was shown. Empty where nobody had to show one: `wootz keys` works on the database itself."""


def actor() -> str:
    return ACTOR.get() or f"local:{_local_user()}"


def _local_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # A container may run as a number without a name.
        return "unknown"
