"""What the supervisor tells the HTTP process. It travels in an environment variable: a config may name passwords,
and arguments are there for everybody on the machine to read."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from wootz.core import Config

SETUP_VARIABLE = "_WOOTZ_HTTP_SETUP"


class HttpSetup(BaseModel):
    config: Config
    engine_sockets: dict[str, Path]
    accounts: bool
    listener: int
    """File descriptor of the listening socket."""
    ready: int | None = None
    """File descriptor to tell when it accepts, where it takes over from another process."""
